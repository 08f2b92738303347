"""Features on disk: computed once, written whole or not at all, never used when stale or torn.

An entry is ``NAME.npy`` with ``(rows, D)`` in float16, mapped into memory, ``NAME.labels.npy``, and ``NAME.json`` with the
key and the checksums of both, written last. NAME is a hash of the key, so another key is another entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from huvr.errors import HuvrError
from huvr.files import read_json, whole

VERSION = 1  # to be raised when the same key gives other features


class Entry(NamedTuple):
    """Features ``(rows, D)`` float16, and labels ``(rows,)`` int64."""

    features: np.ndarray
    labels: np.ndarray


def find(folder: Path, key: dict[str, Any]) -> Entry | None:
    """The entry of that key, if it is there and sound."""
    features, labels, description = files(folder, key)
    if not description.exists():
        return None
    try:
        told = read_json(description)
        sound = told.get("key") == known(key) and told.get("checksums") == [checksum(features), checksum(labels)]
        return Entry(np.load(features, mmap_mode="r")[: told["rows"]], np.load(labels)) if sound else None
    except (OSError, HuvrError):
        return None


def store(folder: Path, key: dict[str, Any], capacity: int, pieces: Iterable[Entry]) -> None:
    """Write the entry of that key, piece by piece.

    Raises:
        HuvrError: where the folder cannot be written; and for features that are no numbers in float16.
    """
    features, labels, description = files(folder, key)
    with whole(description) as for_description, whole(labels) as for_labels, whole(features) as for_features:
        array: np.memmap | None = None
        found: list[np.ndarray] = []
        rows = 0
        for piece in pieces:
            if not np.isfinite(piece.features).all():
                raise HuvrError("these features leave the range of float16: the encoder is damaged, or not made for such images")
            if array is None:
                array = np.lib.format.open_memmap(for_features, "w+", np.float16, (capacity, piece.features.shape[1]))
            array[rows : rows + len(piece.labels)] = piece.features
            rows += len(piece.labels)
            found.append(piece.labels)
        if array is None:
            raise HuvrError("no features to keep")
        array.flush()
        with open(for_labels, "wb") as file:  # np.save would add a suffix of its own
            np.save(file, np.concatenate(found))
        told = {"key": known(key), "rows": rows, "checksums": [checksum(for_features), checksum(for_labels)]}
        for_description.write_text(json.dumps(told, indent=1) + "\n")


def known(key: dict[str, Any]) -> dict[str, Any]:
    return {"version": VERSION} | key


def files(folder: Path, key: dict[str, Any]) -> tuple[Path, Path, Path]:
    """Features, labels and description of that key."""
    name = hashlib.blake2b(json.dumps(known(key), sort_keys=True).encode(), digest_size=12).hexdigest()
    return folder / f"{name}.npy", folder / f"{name}.labels.npy", folder / f"{name}.json"


def checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
