"""The data module: any image source as batches for training and for looking at held-out images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from huvr.data import photos
from huvr.data.folders import HELD_OUT_SPLITS
from huvr.data.loader import ROUND, Batch, Draws, Loader, TrainLoader, collate, held_out_batches, workers_of
from huvr.data.module import ResumableData
from huvr.data.samples import HeldOutSet, Rows, TrainSet, seed_of
from huvr.data.sources import Table, open_splits
from huvr.data.stream import HeldOutStream, TrainStream, readable
from huvr.data.transforms import Crop, colour_jitter, training_view
from huvr.errors import HuvrError


class Images(ResumableData):
    """Images from any source.

    Batches are ``{"image": uint8 (B, 3, H, W), "label": int64 (B,) where the source has labels}``, with ``echoes`` also
    ``{"echo": Echo}``, see :class:`huvr.data.loader.Echo`.
    Order, crops and sizes of training follow from ``seed`` alone, not from the number of workers or ranks
    (a stream's do), and training resumes exactly in the middle of an epoch.

    Args:
        root: ``photos`` (real photographs that scikit-image ships), a folder of images with or without split
            and class subfolders, a Parquet, Arrow or WebDataset file or a folder of them, or a Hugging Face data set's id.
        train_split: the split to train on; all of a source without splits is "train".
        val_split: the held-out split; None finds it: validation, val, valid, dev or test.
        held_out: share of the training split to hold out when there is no such split, the same whatever the
            seed; 0 validates on nothing.
        test_split: the split that ``huvr test`` measures; None finds it: test, or else what validation looks at.
        streaming: read such files and hub sources row by row, without a converted copy on the disk.
        size: side of the square images in pixels.
        sizes: (H, W) in pixels to train on instead, one drawn per batch; those of about equal area make
            batches of equal cost.
        crop: what training sees: "resized", a random crop brought to the size, and mirrored or not; "native", a random place of
            an image as it is, mirrored or not; "centre", its middle as in validation.
        scale: least and greatest share of an image's area in a "resized" crop.
        colour: strength, 0 to 1, of random changes of brightness, contrast, saturation and hue in training.
        colour_on_device: make them on the device, not on the workers; then they follow from the rank too.
        batch_size: images per batch and device.
        epoch_size: training samples per epoch over all devices; None takes each image once (of ``photos``,
            2048 crops).
        echoes: steps on each training batch, the very same crops, with others between them (data echoing, Choi et al.,
            arXiv 1907.05550); the epoch gets as many times longer. They are loaded once, and a teacher looks at them once.
        workers: processes that load, per device; None suits the machine, at most 16.
        seed: of order, crops and sizes.

    Raises:
        HuvrError: on setup, when the source cannot be used as asked.
    """

    def __init__(
        self,
        root: str = "photos",
        train_split: str = "train",
        val_split: str | None = None,
        held_out: float = 0.05,
        test_split: str | None = None,
        streaming: bool = False,
        size: int = 256,
        sizes: list[tuple[int, int]] | None = None,
        crop: Crop = "resized",
        scale: tuple[float, float] = (0.2, 1.0),
        colour: float = 0.0,
        colour_on_device: bool = False,
        batch_size: int = 64,
        epoch_size: int | None = None,
        echoes: int = 1,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= held_out < 1:
            raise HuvrError(f"held_out {held_out}: expected a share from 0 to below 1")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise HuvrError(f"scale {tuple(scale)}: expected two shares of an image's area, 0 < least <= greatest <= 1")
        if not 0 <= colour <= 1:
            raise HuvrError(f"colour {colour}: expected a strength from 0 to 1")
        if min(side for pair in [(size, batch_size), *(sizes or [])] for side in pair) < 1 or sizes == []:
            raise HuvrError(f"size {size}, sizes {sizes}, batch_size {batch_size}: expected whole numbers, 1 or more")
        if echoes < 1:
            raise HuvrError(f"echoes {echoes}: expected a whole number, 1 or more")
        if (workers or 0) < 0 or (epoch_size is not None and epoch_size < 1):
            raise HuvrError(f"workers {workers}, epoch_size {epoch_size}: expected 0 or more workers, 1 or more samples")
        self.root, self.streaming = root, streaming
        self.train_split, self.val_split, self.held_out, self.test_split = train_split, val_split, held_out, test_split
        self.size = size
        self.view = partial(training_view, crop=crop, scale=(scale[0], scale[1]), colour=0.0 if colour_on_device else colour)
        self.recolour = colour_jitter(colour) if colour and colour_on_device else None
        self.sizes = [(height, width) for height, width in sizes or [(size, size)]]
        self.batch_size, self.epoch_size, self.echoes, self.seed = batch_size, epoch_size, echoes, seed
        self.workers = workers_of(workers)
        self.train_rows: Rows | IterableDataset | None = None
        self.val_rows: Rows | IterableDataset | None = None
        self.test_rows: Rows | IterableDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the source, decide what is held out, and see that both sides can be read."""
        if self.train_rows is not None:
            return
        splits = open_splits(self.root, self.streaming)
        val_split = self.val_split or next(
            (name for name in HELD_OUT_SPLITS if name in splits and name != self.train_split), None
        )
        test_split = self.test_split or ("test" if "test" in splits and self.train_split != "test" else val_split)
        for name in (self.train_split, val_split, test_split):
            if name is not None and name not in splits:
                raise HuvrError(f"data root {self.root!r}: no split {name!r}; it has {', '.join(splits)}")
        for option, name in (("val_split", val_split), ("test_split", test_split)):
            if name == self.train_split:
                raise HuvrError(f"train_split and {option} are both {name!r}: held-out images must not be trained on")
        train = splits[self.train_split]
        if val_split is not None:
            self.val_rows = self._rows(splits[val_split], val_split)
            self.train_rows = self._rows(train, self.train_split)
        else:
            self.train_rows, self.val_rows = self._hold_out(train)
        self.test_rows = self.val_rows if test_split in (None, val_split) else self._rows(splits[test_split], test_split)
        for rows in (self.train_rows, self.val_rows):
            if rows is not None:
                self._see(rows)
        if self.root == "photos":
            rank_zero_info(f"photos: training on {', '.join(photos.TRAIN)}; held out: {', '.join(photos.HELD_OUT)}")

    def _rows(self, table: Table, split: str) -> Rows | IterableDataset:
        if isinstance(table, IterableDataset):
            return table
        return Rows(table, np.arange(len(table)), f"{self.root} ({split})")

    def _hold_out(self, table: Table) -> tuple[Rows | IterableDataset, Rows | None]:
        if self.held_out == 0:
            return self._rows(table, self.train_split), None
        if isinstance(table, IterableDataset):
            raise HuvrError(
                f"data root {self.root!r} has no held-out split, and a stream cannot be divided: set val_split or held_out 0"
            )
        if len(table) < 2:
            raise HuvrError(f"data root {self.root!r}: {len(table)} image(s), too few to hold one out; set held_out 0")
        # Not the seed of the run: a run that goes on with another seed must not train on what was held out.
        order = np.random.default_rng(0).permutation(len(table))
        share = min(max(1, round(self.held_out * len(table))), len(table) - 1)
        source = f"{self.root} ({self.train_split})"
        return Rows(table, np.sort(order[share:]), source), Rows(table, np.sort(order[:share]), source)

    def _see(self, rows: Rows | IterableDataset) -> None:
        """Raise unless there is a readable image among ``rows``."""
        if isinstance(rows, Rows):
            rows.readable(0)
        elif next(readable(rows, self.root), None) is None:
            raise HuvrError(f"{self.root}: no image is readable")

    @property
    def _told(self) -> dict[str, int]:
        rows, held_out = self.train_rows, self.val_rows
        if isinstance(rows, Rows):
            return super()._told | {"images": len(rows) + (len(held_out) if isinstance(held_out, Rows) else 0)}
        if rows is None:
            return super()._told
        shards = split_dataset_by_node(rows, *self._rank).num_shards
        return super()._told | {"shards": rows.num_shards, "readers": min(self.workers, shards)}

    def train_dataloader(self) -> TrainLoader:
        """One epoch of complete training batches."""
        rank, world = self._rank
        rows = self.train_rows
        epoch_size = self._epoch_size(rows)
        length = epoch_size // (self.batch_size * world)
        if length == 0:
            raise HuvrError(
                f"batch_size {self.batch_size} on {world} device(s) is more than the {epoch_size} training images of an epoch: "
                f"at most {epoch_size // world} here, or set a larger epoch_size"
            )
        sampler: Draws | TrainStream
        if isinstance(rows, Rows):
            sampler = Draws(len(rows), epoch_size, self.sizes, self.batch_size, self.seed, rank, world)
            batches = self._batches(TrainSet(rows, self.view), self.workers, sampler=sampler, drop_last=True)
        else:
            rows = split_dataset_by_node(rows, rank, world)
            sampler = TrainStream(rows, self.sizes, self.view, self.batch_size, self.seed, rank, self.root)
            # A persistent worker would never hear of the next epoch.
            batches = self._batches(sampler, min(self.workers, rows.num_shards), persistent_workers=False)
        # the batches that one step accumulates are all different
        together = max(ROUND, self.trainer.accumulate_grad_batches if self.trainer else 1)
        return self.resumable(batches, sampler, length, self.echoes, together)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Colours change here where the device is to do it: those of a batch alike whenever it comes or training resumes."""
        if self.recolour is None or self.trainer is None or not self.trainer.training:
            return batch
        number = batch["echo"].number if "echo" in batch else self.trainer.fit_loop.epoch_loop.total_batch_idx
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of("colour", self.seed, number, self._rank[0]))
            return batch | {"image": torch.stack([self.recolour(image) for image in batch["image"]])}

    def val_dataloader(self) -> Loader | list[Loader]:
        """The held-out images once each, in order; see :func:`held_out_batches` for how several ranks share them."""
        return self._held_out_loader(self.val_rows)

    def test_dataloader(self) -> Loader | list[Loader]:
        """Those of the test split, likewise."""
        return self._held_out_loader(self.test_rows)

    predict_dataloader = val_dataloader

    def _held_out_loader(self, rows: Rows | IterableDataset | None) -> Loader | list[Loader]:
        rank, world = self._rank
        if rows is None:
            if self.trainer and self.trainer.state.fn != TrainerFn.FITTING:
                raise HuvrError(f"data root {self.root!r}: nothing is held out to look at: set held_out, val_split or test_split")
            return []
        if isinstance(rows, Rows):
            order = held_out_batches(len(rows), self.batch_size, rank, world)
            return Loader(self._batches(HeldOutSet(rows, self.size), self.workers, batch_size=1, batch_sampler=order))
        if world > 1 and isinstance(self.trainer.strategy, ModelParallelStrategy):  # type: ignore[union-attr]
            raise HuvrError(
                f"data root {self.root!r}: of a stream, processes get unequal numbers of batches, and with weights in shards one "
                "would wait for another for good: set trainer.limit_val_batches 0 or data.streaming false"
            )
        mine = split_dataset_by_node(rows, rank, world)
        if world > 1 and next(readable(mine, self.root), None) is None:
            first = next(readable(rows, self.root)).row  # looked at twice, as every rank takes part in the means
            return Loader(self._batches(HeldOutStream([first], self.size, self.root), workers=0))
        return Loader(self._batches(HeldOutStream(mine, self.size, self.root), min(self.workers, mine.num_shards)))

    def _batches(self, dataset: Dataset, workers: int, **options: Any) -> DataLoader:
        options = {"batch_size": self.batch_size, "persistent_workers": workers > 0} | options
        return DataLoader(dataset, num_workers=workers, collate_fn=collate, pin_memory=torch.cuda.is_available(), **options)

    def _epoch_size(self, rows: Rows | IterableDataset) -> int:
        if self.epoch_size is not None:
            return self.epoch_size
        if self.root == "photos":
            return photos.CROPS_PER_EPOCH
        if isinstance(rows, Rows):
            return len(rows)
        known = (rows.info.splits or {}).get(self.train_split)
        if known is None:
            raise HuvrError(f"data root {self.root!r}: the length of this stream is not known: set epoch_size")
        return known.num_examples
