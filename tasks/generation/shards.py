"""TinToks of a data set on the disk, in shards: each is complete or not there, so that broken-off work goes on."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from huvr.data.samples import Draw, Rows, Sample
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError
from huvr.files import read_json, whole

from .. import cache
from ..labelled import fingerprint, labels_of
from ..looks import looks_at
from .codec import Codec
from .space import LatentSpace, Statistics

IMAGES = 8192  # of a shard
PIECE = 1024  # sequences in memory at once


class Store:
    """The TinToks of ``rows``, each image seen at its middle, plain and flipped, in shards below ``folder``.

    Shards are entries of :mod:`huvr.tasks.cache`, so one that is torn or of other images or weights counts as missing.
    """

    def __init__(self, folder: Path, encoder: Codec, rows: Rows, size: int) -> None:
        self.folder, self.encoder, self.rows, self.size = folder, encoder, rows, size
        view = f"shorter side {size} bicubic, middle {size}, each with its mirror image"
        key = {"encoder": encoder.fingerprint, "feature": "tokens", "data": fingerprint(rows), "view": view}
        starts = range(0, len(rows), IMAGES)
        self.keys: list[dict[str, Any]] = [key | {"images": [start, min(start + IMAGES, len(rows))]} for start in starts]

    def complete(self, batch_size: int, workers: int) -> None:
        """Compute what is missing; of what is cut off it warns."""
        for key in self.keys:
            if cache.find(self.folder, key) is None:
                path, _, description = cache.files(self.folder, key)
                if description.exists():
                    warnings.warn(f"{path}: latents cut off or changed since they were written; computed again", stacklevel=2)
                first, last = key["images"]
                part = Rows(self.rows.table, self.rows.numbers[first:last], self.rows.source)
                title = f"latents of {self.rows.source}, images {first} to {last - 1}"
                cache.store(self.folder, key, 2 * len(part), self._computed(part, title, batch_size, workers))

    def _computed(self, rows: Rows, title: str, batch_size: int, workers: int) -> Iterator[cache.Entry]:
        loader, labels = looks_at(rows, centre_crop(self.size), batch_size, workers), labels_of(rows)
        for batch in tqdm(loader, title, unit="batch", disable=None):
            if batch:
                pictures = batch["image"].to(self.encoder.device).float() / 255
                both = [self.encoder.look(view).sequence for view in (pictures, pictures.flip(-1))]
                sequences = torch.stack(both, 1).flatten(0, 1).flatten(1)  # image 0, its mirror image, image 1, …
                yield cache.Entry(sequences.half().cpu().numpy(), labels[batch["row"].numpy()].repeat(2))

    def open(self, shape: tuple[int, int]) -> Shards:
        """All shards, to be read; ``shape`` is (1 + h * w, d).

        Raises:
            HuvrError: where one is missing.
        """
        entries = [cache.find(self.folder, key) for key in self.keys]
        if None in entries:
            raise HuvrError(f"{self.folder}: the latents written there a moment ago are gone")
        return Shards([entry for entry in entries if entry is not None], shape)

    def statistics(self, shards: Shards) -> Statistics:
        """Those of all shards, from the disk where they are known already."""
        name = hashlib.blake2b(json.dumps([cache.VERSION, self.keys]).encode(), digest_size=12).hexdigest()
        path = self.folder / f"{name}.statistics.json"
        if path.exists():
            try:
                return Statistics.from_plain(read_json(path))
            except (HuvrError, KeyError, TypeError, ValueError):
                pass  # torn: taken again
        statistics = Statistics.of(shards.pieces())
        with whole(path) as temporary:
            temporary.write_text(json.dumps(statistics.plain()) + "\n")
        return statistics


class Shards:
    """TinToks on the disk: of image i, row 2 i is the plain view and row 2 i + 1 the mirror image."""

    def __init__(self, entries: Sequence[cache.Entry], shape: tuple[int, int]) -> None:
        self.entries, self.shape = entries, shape
        self.ends = np.cumsum([len(entry.labels) // 2 for entry in entries])
        if entries[0].features.shape[1] != shape[0] * shape[1]:
            found = entries[0].features.shape[1]
            raise HuvrError(f"latents of {found} numbers an image: expected {shape[0]} tokens of {shape[1]}")

    def __len__(self) -> int:
        """Images, mirror images not counted."""
        return int(self.ends[-1])

    def read(self, image: int, mirrored: bool) -> tuple[Tensor, int]:
        """TinToks of one image, fp32 ``(1 + h * w, d)``, and its label."""
        shard = int(np.searchsorted(self.ends, image, side="right"))
        entry, row = self.entries[shard], 2 * (image - int(self.ends[shard - 1] if shard else 0)) + int(mirrored)
        return torch.from_numpy(entry.features[row].astype(np.float32)).view(self.shape), int(entry.labels[row])

    def pieces(self) -> Iterator[Tensor]:
        """All of them in order, fp32 ``(n, 1 + h * w, d)``."""
        for entry in self.entries:
            for start in range(0, len(entry.labels), PIECE):
                yield torch.from_numpy(entry.features[start : start + PIECE].astype(np.float32)).unflatten(1, self.shape)


class LatentSet(Dataset[Sample]):
    """Normalised latents, one per :class:`huvr.data.samples.Draw`, whose seed says whether to take the mirror image."""

    def __init__(self, shards: Shards, space: LatentSpace) -> None:
        self.shards, self.space = shards, space

    def __getitem__(self, draw: Draw) -> Sample:
        sequence, label = self.shards.read(draw.row, bool(draw.seed & 1))
        return {"latents": self.space.normalise(sequence), "label": label, "skipped": []}
