"""Labelled images of any source, seen one by one in order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from textwrap import shorten

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, IterableDataset
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from huvr.data.folders import HELD_OUT_SPLITS
from huvr.data.samples import Rows, evenly
from huvr.data.sources import Table, open_splits
from huvr.errors import HuvrError


def open_labelled(root: str, names: tuple[str | None, str | None], limits: tuple[int | None, int | None]) -> tuple[Rows, Rows]:
    """The images of ``root`` to learn from, and those to be measured on.

    Args:
        root: whatever ``huvr.data.sources.open_splits`` opens.
        names: of the two splits. Without the first there is nothing to learn, and the second stands for it; None finds the
            one to be measured on: validation, val, valid, dev or test.
        limits: how many images to take, evenly spread over the split; None takes all.

    Raises:
        HuvrError: where there are no such splits, or no labels.
    """
    splits = open_splits(root)
    train, test = chosen_splits(root, splits, (names[0] or "", names[1]))
    named = zip((train, test), limits, strict=True)
    rows = {name: labelled(splits[name], f"{root} ({name})", limit) for name, limit in named if name}
    return rows.get(train, rows[test]), rows[test]


def chosen_splits(root: str, splits: Iterable[str], names: tuple[str, str | None]) -> tuple[str, str]:
    """Names of the split to learn from, "" for none, and of that to be measured on, see :func:`open_labelled`."""
    there = [*splits]
    train, test = names[0], names[1] or next((name for name in HELD_OUT_SPLITS if name in there), "")
    for name in (train, test) if train else (test,):
        if name not in there:
            wanted = f"no split {name!r}" if name else f"no held-out split ({', '.join(HELD_OUT_SPLITS)})"
            raise HuvrError(f"data root {root!r}: {wanted}; it has {', '.join(there)}")
    if test == train:
        raise HuvrError(f"train_split and test_split are both {test!r}: nothing would be left to be measured on")
    return train, test


def labelled(table: Table, source: str, limit: int | None) -> Rows:
    """The rows of a table, all or ``limit`` of them.

    Raises:
        HuvrError: where there are no labels.
    """
    if isinstance(table, IterableDataset) or "label" not in table.column_names:
        raise HuvrError(f"{source}: no labels; expected class subfolders, or a column label of whole numbers")
    unlabelled = [number for number, label in enumerate(table["label"]) if label is None or label < 0]
    if unlabelled:
        raise HuvrError(f"{source}: {len(unlabelled)} images without a label, the first being row {unlabelled[0]}")
    return Rows(table, evenly(len(table), limit), source)


def classes_of(rows: Rows, labels: np.ndarray) -> list[str]:
    """Names of the classes, by label; where they have none, numbers up to the greatest of ``labels``."""
    kind = rows.table.features["label"]
    return kind.names if isinstance(kind, ClassLabel) else [str(label) for label in range(labels.max() + 1)]


def common_classes(train: Rows, test: Rows) -> list[str]:
    """Names of the classes, by label.

    Raises:
        HuvrError: for fewer than two of them to learn from, or others to be measured on.
    """
    learnt, asked = (np.asarray(rows.table["label"][:])[rows.numbers] for rows in (train, test))
    classes, known = classes_of(train, learnt), {*learnt.tolist()}
    if len(known) < 2:
        raise HuvrError(f"{train.source}: {len(known)} class; a classifier needs 2 or more to tell apart")
    if unknown := sorted({*asked.tolist()} - known):
        names = [classes[label] if label < len(classes) else str(label) for label in unknown]
        raise HuvrError(f"{test.source}: classes that {train.source} lacks: {shorten(', '.join(names), 200)}")
    if absent := len(known) - len({*asked.tolist()}):
        rank_zero_warn(f"{test.source}: no images of {absent} of the {len(known)} classes that {train.source} has")
    return classes


def fingerprint(rows: Rows) -> str:
    """Of the images and labels: the fingerprint of ``datasets``, the rows taken, and size and date of files it only names."""
    digest = hashlib.blake2b(rows.numbers.astype(np.int64).tobytes(), digest_size=16)
    if rows.table.cache_files:  # packs, which datasets has read and knows by their content
        digest.update(rows.table._fingerprint.encode())
    else:
        digest.update(repr([*rows.table["label"]]).encode())
    for path in named_files(rows):
        try:
            status = os.stat(path)
            digest.update(repr((path, status.st_size, status.st_mtime_ns)).encode())
        except OSError:  # missing, and left out when its turn comes, or no local file
            digest.update(repr(path).encode())
    return digest.hexdigest()


def named_files(rows: Rows) -> Iterator[str]:
    """The files that the table of the rows only names, as a folder's does and a pack may."""
    for cells in rows.table.data.column("image").chunks:  # not decoded: a pack of bytes is not read for this
        content, paths = pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path")
        yield from paths.filter(pc.and_(content.is_null(), paths.is_valid())).to_pylist()


def labels_of(rows: Rows) -> np.ndarray:
    """By number of the row, int64 ``(rows,)``."""
    return np.asarray(rows.table["label"][:], np.int64)[rows.numbers]
