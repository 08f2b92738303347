"""The data of a generator: TinToks of images, from the disk, or of random crops as training goes on."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from huvr.data.loader import Batch, Draws, TrainLoader, collate, images_of, workers_of
from huvr.data.module import ResumableData
from huvr.data.samples import Rows, TrainSet
from huvr.data.sources import Table, open_splits
from huvr.data.transforms import random_crop
from huvr.errors import HuvrError

from ..labelled import classes_of, labelled
from .codec import Codec, open_codec
from .shards import IMAGES, LatentSet, Store
from .space import LatentSpace


class Latents(ResumableData):
    """Normalised TinToks of the frozen encoder that the generator names.

    Batches are ``{"latents": (B, N, d), "label": int64 (B,)}``. Computed once, plain and mirrored, they lie in ``cache``,
    and the encoder has no part in training. Order and mirroring follow from ``seed`` alone, and training resumes exactly in
    the middle of an epoch. Images without labels make an unconditional generator.

    Args:
        root: a folder of images with or without split and class subfolders, a Parquet or Arrow file or a folder of them, or
            the id of a Hugging Face data set.
        split: the split to learn from; all of a source without splits is "train".
        size: side in pixels of the square pictures: the shorter side is resized to it, and the middle cut out.
        images: take only that many, evenly spread over the split.
        online: encode random crops and flips as training goes on. Statistics are then those of a part of the images.
        scale: least and greatest share of an image's area in such a crop.
        batch_size: latents per batch and device.
        encode_batch: images per pass of the encoder, when it fills the cache.
        workers: processes that read, per device; None suits the machine, at most 16.
        cache: folder of the latents.
        seed: of order, mirroring and crops.

    Raises:
        HuvrError: on setup, for data or an encoder that cannot be used.
    """

    def __init__(
        self,
        root: str = "",
        split: str = "train",
        size: int = 256,
        images: int | None = None,
        online: bool = False,
        scale: tuple[float, float] = (0.8, 1.0),
        batch_size: int = 256,
        encode_batch: int = 64,
        workers: int | None = None,
        cache: Path = Path("runs/latents"),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not root:
            raise HuvrError("which data? --data.root with a folder, a file or a Hugging Face data set of images")
        if min(size, batch_size, encode_batch, 1 if images is None else images) < 1 or (workers or 0) < 0:
            raise HuvrError("size, batch_size, encode_batch, images: expected 1 or more; workers: 0 or more")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise HuvrError(f"scale {tuple(scale)}: expected two shares of an image's area, 0 < least <= greatest <= 1")
        self.root, self.split, self.size, self.images = root, split, size, images
        self.online, self.view = online, partial(random_crop, scale=(scale[0], scale[1]))
        self.batch_size, self.encode_batch, self.seed = batch_size, encode_batch, seed
        self.workers = workers_of(workers)
        self.cache = cache
        self.space: LatentSpace | None = None

    @cached_property
    def encoder(self) -> Codec:
        """The one that the generator names."""
        source = getattr(self.trainer.lightning_module if self.trainer else None, "encoder", None)
        if not isinstance(source, str):
            raise HuvrError("data: these latents are those of a generator's encoder; this model names none")
        encoder = open_codec(source)
        if self.size % encoder.patch:
            raise HuvrError(f"size {self.size}: expected a multiple of the encoder's patch of {encoder.patch} pixels")
        return encoder

    @cached_property
    def source(self) -> tuple[Rows, list[str]]:
        """The images, and the names of their classes; images without labels all get the label 0, and no class."""
        tables = open_splits(self.root)
        if self.split not in tables:
            raise HuvrError(f"data root {self.root!r}: no split {self.split!r}; it has {', '.join(tables)}")
        return rows_of(tables[self.split], f"{self.root} ({self.split})", self.images)

    @cached_property
    def _store(self) -> Store:
        """Of all images; of crops, a part that is large enough for statistics."""
        rows, _ = self.source
        if self.online and len(rows) > IMAGES:
            rows = rows.thinned(IMAGES)
        return Store(self.cache, self.encoder, rows, self.size)

    def prepare_data(self) -> None:
        """Compute what the cache lacks."""
        self.encoder.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]
        self._store.complete(self.encode_batch, self.workers)
        self._store.statistics(self._store.open(self._shape))  # by one process, before the others ask for them
        self.encoder.to("cpu")  # it has no part in training

    @property
    def _shape(self) -> tuple[int, int]:
        """Of the TinToks of an image, (1 + h * w, d)."""
        side = self.size // self.encoder.patch
        return 1 + side * side, self.encoder.dim

    def setup(self, stage: str | None = None) -> None:
        if self.space is not None:
            return
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        side = self.size // self.encoder.patch
        self.shards = self._store.open(self._shape)
        self.space = LatentSpace(
            self.encoder.source, self.encoder.fingerprint, (side, side), self.source[1],
            self._store.statistics(self.shards), module.global_token,
        )  # fmt: skip
        if not self.space.classes:
            rank_zero_warn(f"{self.source[0].source}: no labels, so what is learned are pictures of no class in particular")
        if self.online:
            self.encoder.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]

    def train_dataloader(self) -> TrainLoader:
        """One epoch of complete batches."""
        assert self.space is not None
        rank, world = self._rank
        dataset: Any = TrainSet(self.source[0], self.view) if self.online else LatentSet(self.shards, self.space)
        count = len(self.source[0] if self.online else self.shards)
        length = count // (self.batch_size * world)
        if length == 0:
            at_most = f"at most {count // world}, for {count} images"
            raise HuvrError(f"batch_size {self.batch_size} on {world} device(s): expected {at_most}")
        sampler = Draws(count, count, [(self.size, self.size)], self.batch_size, self.seed, rank, world)
        batches: DataLoader = DataLoader(
            dataset, self.batch_size, sampler=sampler, drop_last=True, num_workers=self.workers, collate_fn=collate,
            pin_memory=torch.cuda.is_available(), persistent_workers=self.workers > 0,
        )  # fmt: skip
        return self.resumable(batches, sampler, length)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Encodes images on the device."""
        if "image" not in batch:
            return batch
        assert self.space is not None
        tokens = self.encoder.look(images_of(batch))
        return {"latents": self.space.normalise(tokens.sequence), "label": batch["label"]}


def rows_of(table: Table, source: str, limit: int | None) -> tuple[Rows, list[str]]:
    """The rows of a table, all or ``limit`` of them, and the names of their classes; without labels all get 0, and no class."""
    if isinstance(table, Dataset) and "label" not in table.column_names:
        return labelled(table.add_column("label", np.zeros(len(table), np.int64)), source, limit), []
    rows = labelled(table, source, limit)
    return rows, classes_of(rows, np.array(table["label"]))
