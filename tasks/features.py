"""Labelled images as features of a frozen encoder: seen once, without augmentation, then read from the disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from huvr.data.loader import workers_of
from huvr.data.samples import Rows
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError
from huvr.model.tokens import Tokens

from . import cache
from .base import FrozenEncoder, FrozenEncoderTask
from .labelled import common_classes, fingerprint, labels_of, open_labelled
from .looks import looks_at
from .storage import size_stored

PIECE = 8192  # features in memory at once


class FeatureSplit:
    """The features of one split, on the disk.

    Args:
        entry: as the cache gives it.
        classes: names of the classes, by label.
        encoder: the one they come from, for what it does on reading, and for the device to read to.
    """

    def __init__(self, entry: cache.Entry, classes: list[str], encoder: FrozenEncoder) -> None:
        self.entry, self.classes, self.encoder = entry, classes, encoder
        self.dim = encoder.config.components or entry.features.shape[1]

    def __len__(self) -> int:
        return len(self.entry.labels)

    def pieces(self, size: int = PIECE) -> Iterator[tuple[Tensor, Tensor]]:
        """All features in order, fp32 ``(n, D)`` with labels int64 ``(n,)``, as they come back from where they were stored."""
        for features, labels in self.unprojected(size):
            yield self.encoder.finish(without_patches(features)).cls, labels

    def unprojected(self, size: int = PIECE) -> Iterator[tuple[Tensor, Tensor]]:
        """The same before PCA and storage."""
        for start in range(0, len(self), size):
            features = torch.from_numpy(np.array(self.entry.features[start : start + size]))
            labels = torch.from_numpy(self.entry.labels[start : start + size])
            yield features.to(self.encoder.device).float(), labels.to(self.encoder.device)


class Features(LightningDataModule):
    """The cls tokens of labelled images, for tasks that read them without any augmentation.

    A batch is a whole split, a :class:`FeatureSplit`, to be read piece by piece. What the encoder says of an image lies in
    ``cache``, once for all tasks with the same encoder, tokens and view; PCA is done on reading.

    Args:
        root: a folder with split and class subfolders, a Parquet or Arrow file or a folder of them, or the id of a Hugging
            Face data set, with the column ``label``.
        train_split: the split to learn from.
        test_split: the split to be measured on; None finds it: validation, val, valid, dev or test.
        resize: pixels of the shorter side (bicubic, antialiased).
        crop: side in pixels of the square in the middle that the encoder sees.
        train_images, test_images: take only that many, evenly spread over the split.
        batch_size: images per pass of the encoder.
        workers: processes that read images; None suits the machine, at most 16.
        cache: folder of the features.

    Raises:
        HuvrError: on setup, for data that cannot be opened, have no labels, or only one split.
    """

    def __init__(
        self,
        root: str = "",
        train_split: str = "train",
        test_split: str | None = None,
        resize: int = 256,
        crop: int = 224,
        train_images: int | None = None,
        test_images: int | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        cache: Path = Path("runs/features"),
    ) -> None:
        super().__init__()
        if not root:
            raise HuvrError("which data? --data.root with a folder, a file or a Hugging Face data set of labelled images")
        if not 1 <= crop <= resize:
            raise HuvrError(f"resize {resize}, crop {crop}: expected 1 <= crop <= resize")
        limits = [limit for limit in (train_images, test_images) if limit is not None]
        if min([batch_size, *limits]) < 1 or (workers or 0) < 0:
            raise HuvrError("train_images, test_images, batch_size: expected 1 or more; workers: 0 or more")
        self.root, self.train_split, self.test_split = root, train_split, test_split
        self.train_images, self.test_images = train_images, test_images
        self.resize, self.crop = resize, crop
        self.view = centre_crop(crop, resize)
        self.batch_size = batch_size
        self.workers = workers_of(workers)
        self.cache = cache
        self.train: FeatureSplit | None = None
        self.test: FeatureSplit | None = None

    def prepare_data(self) -> None:
        """Compute what the cache lacks."""
        if self.train is not None:
            return
        for rows, key in zip(self._splits, self._keys, strict=True):
            if cache.find(self.cache, key) is None:
                cache.store(self.cache, key, len(rows), self._computed(rows))

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        encoder, splits = self._task.encoder, self._splits
        train, test = (cache.find(self.cache, key) for key in self._keys)
        if train is None or test is None:
            raise HuvrError(f"{self.cache}: the features written there a moment ago are gone")
        classes = common_classes(*(splits if self._task.learns else (splits[1], splits[1])))
        encoder.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]
        self.train, self.test = (FeatureSplit(entry, classes, encoder) for entry in (train, test))
        if encoder.config.components:
            encoder.fit(without_patches(features) for features, _ in self.train.unprojected())
        named = {"train": self.train, "test": self.test} if splits[0] is not splits[1] else {"test": self.test}
        sources = {"train": splits[0].source, "test": splits[1].source}
        self._task.details |= {
            "data": {name: f"{sources[name]}, {len(split)} images" for name, split in named.items()},
            "bytes_per_image": encoder.stored_bytes(encoder.look(torch.zeros(1, 3, self.crop, self.crop))),
            "bytes_of_cls": size_stored(encoder.dim, encoder.config.stored),
        }

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.train], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.test], batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader

    @property
    def _task(self) -> FrozenEncoderTask:
        task = self.trainer.lightning_module if self.trainer else None
        if not isinstance(task, FrozenEncoderTask):
            raise HuvrError(
                "data: these features are those of the frozen encoder of a huvr.tasks.base.FrozenEncoderTask, and this model is "
                "none; --data names other data"
            )
        return task

    @cached_property
    def _splits(self) -> tuple[Rows, Rows]:
        """The images to learn from, and those to be measured on; these twice where there is nothing to learn."""
        learns = self._task.learns or self._task.encoder.config.components
        names = (self.train_split if learns else None, self.test_split)
        return open_labelled(self.root, names, (self.train_images, self.test_images))

    @cached_property
    def _keys(self) -> list[dict[str, Any]]:
        """All that decides about the features of each split."""
        view = f"shorter side {self.resize} bicubic, middle {self.crop}"
        encoder = self._task.encoder.fingerprint
        return [{"encoder": encoder, "feature": "cls", "data": fingerprint(rows), "view": view} for rows in self._splits]

    def _computed(self, rows: Rows) -> Iterator[cache.Entry]:
        """What the encoder says of all readable images; the others are warned of."""
        encoder = self._task.encoder.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]
        loader, labels = looks_at(rows, self.view, self.batch_size, self.workers), labels_of(rows)
        for batch in tqdm(loader, f"features of {rows.source}", unit="batch", disable=None):
            if batch:
                features = encoder.look(batch["image"].to(encoder.device).float() / 255).cls
                yield cache.Entry(features.half().cpu().numpy(), labels[batch["row"].numpy()])


def without_patches(cls: Tensor) -> Tokens:
    """Tokens of cls tokens alone, ``(n, D)``."""
    return Tokens(cls, cls.new_empty(len(cls), 0, cls.shape[1]), (0, 0))
