"""Images with a number for every pixel, a class or a depth: the data of dense tasks.

Batches are ``{"image": uint8 (B, 3, H, W), "target": (B, H, W), "name": list of str}``; targets are int64 where they are
stored as whole numbers and float32 where as floats. ``name`` is the file, or the pack and row, for errors.

What happens to a pair on its way:

- ``task.read_target(target, name)``, where the task has this attribute, makes labels or metres of a target ``(H, W)`` as it
  is stored, and raises for one that cannot be right. It runs in the workers, so it is a small object or a function, not a
  method of the task.
- In training ``train_view(image, target)``, on ``tv_tensors.Image`` and ``tv_tensors.Mask``, as the transforms of
  torchvision v2 take them. Whatever is random in it comes from torch's generator.
- Otherwise ``test_view(image)``, on the image alone. The target stays whole and at its own size, so that results are
  measured there; batches are single images, in order, each on one rank only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from huvr.data.loader import Batch, Draws, Loader, TrainLoader, collate, images_of, share_of, workers_of
from huvr.data.module import ResumableData
from huvr.data.reading import read_image
from huvr.data.samples import Draw, Sample, evenly
from huvr.errors import HuvrError

from .base import FrozenEncoderTask
from .labelled import chosen_splits
from .pair_sources import content, decode_target, open_pairs, orientation

FITTED = 1000  # training images that principal components are found on

Pair = tuple[tv_tensors.Image, tv_tensors.Mask, str]
ReadTarget = Callable[[Tensor, str], Tensor]


class PairRows:
    """Some of the rows of a table with the columns ``image`` and ``target``, evenly spread over it; ``limit`` None takes all."""

    def __init__(self, table: Any, source: str, limit: int | None = None, read_target: ReadTarget | None = None) -> None:
        self.table, self.source, self.read_target = table, source, read_target
        self.numbers = evenly(len(table), limit)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Pair:
        """Image uint8 ``(3, H, W)``, target ``(H, W)``, and what an error calls them.

        Raises:
            HuvrError: for a pair that cannot be read, or of two sizes.
        """
        number = int(self.numbers[index])
        row, name = self.table[number], f"{self.source} row {number}"
        source, name = content(row["image"], name)
        image = pil_to_tensor(read_image(source, name))
        target = decode_target(*content(row["target"], f"{name}, its target"))
        if (turn := orientation(source)) in range(2, 9):
            raise HuvrError(
                f"{name}: to be turned by EXIF orientation {turn}, and its target perhaps not: turn the pixels of both"
            )
        if image.shape[1:] != target.shape:
            sizes = ["x".join(map(str, size)) for size in (image.shape[1:], target.shape)]
            raise HuvrError(f"{name}: the image has {sizes[0]} pixels, its target {sizes[1]}; expected the same")
        target = self.read_target(target, name) if self.read_target else target
        return tv_tensors.Image(image), tv_tensors.Mask(target), name


class TrainPairs(Dataset[Sample]):
    """Pairs through a random view that depends on nothing but the :class:`Draw`."""

    def __init__(self, rows: PairRows, view: v2.Transform) -> None:
        self.rows, self.view = rows, view

    def __getitem__(self, draw: Draw) -> Sample:
        image, target, name = self.rows[draw.row]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw.seed)
            try:
                image, target = self.view(image, target)
            except HuvrError as error:
                raise HuvrError(f"{name}: {error}") from None
            return sample(image, target, name)


class TestPairs(Dataset[Sample]):
    """Pairs in order: images through a view, targets as they are."""

    def __init__(self, rows: PairRows, view: v2.Transform) -> None:
        self.rows, self.view = rows, view

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        image, target, name = self.rows[index]
        return sample(self.view(image), target, name)


class Pairs(ResumableData):
    """Images with a target per pixel, augmented in training, whole in tests.

    Order and views of training follow from ``seed`` alone, not from the number of workers or ranks, and training resumes
    in the middle of an epoch. An epoch takes each image at most once; those that fill no batch are left out of it. For
    ``tokens: pca<d>`` the components are fitted on at most 1000 training images, as ``test_view`` shows them.

    Args:
        root: a Parquet or Arrow file or a folder of them, with a column ``image``; a folder with ``SPLIT/images`` and
            ``SPLIT/TARGET``, or ``images/SPLIT`` and ``TARGET/SPLIT``; or the id of a Hugging Face data set.
        target: the column, or the folder, of the targets.
        train_view: transforms images and targets of training together; None leaves them as they are.
        test_view: transforms the images of tests, alone; None leaves them as they are.
        train_split: the split to learn from; folders called "training" are "train".
        test_split: the split to be measured on; None finds it: validation, val, valid, dev or test.
        train_images, test_images: take only that many, evenly spread over the split.
        batch_size: training images per batch and device.
        workers: processes that read images, per device; None suits the machine, at most 16.
        seed: of order and views.

    Raises:
        HuvrError: on setup, for data that cannot be opened; on reading, for a pair that cannot be used.
    """

    def __init__(
        self,
        root: str = "",
        target: str = "mask",
        train_view: v2.Transform | None = None,
        test_view: v2.Transform | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        train_images: int | None = None,
        test_images: int | None = None,
        batch_size: int = 16,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not root:
            raise HuvrError("which data? --data.root with a folder, a file or a Hugging Face data set of images and targets")
        limits = [limit for limit in (train_images, test_images) if limit is not None]
        if min([batch_size, *limits]) < 1 or (workers or 0) < 0:
            raise HuvrError("train_images, test_images, batch_size: expected 1 or more; workers: 0 or more")
        self.root, self.target = root, target
        self.splits, self.limits = (train_split, test_split), (train_images, test_images)
        self.train_view, self.test_view = train_view or v2.Identity(), test_view or v2.Identity()
        self.batch_size, self.seed = batch_size, seed
        self.workers = workers_of(workers)
        self.rows: dict[str, PairRows] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.rows:
            return
        task = self.trainer.lightning_module if self.trainer else None
        tables = open_pairs(self.root, self.target)
        for side, split, limit in zip(("train", "test"), chosen_splits(self.root, tables, self.splits), self.limits, strict=True):
            source = f"{self.root} ({split})"
            self.rows[side] = PairRows(tables[split], source, limit, getattr(task, "read_target", None))
        if isinstance(task, FrozenEncoderTask):
            task.details["data"] = {side: f"{rows.source}, {len(rows)} images" for side, rows in self.rows.items()}
            encoder = task.encoder.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]
            if encoder.config.components:
                shown = self._whole("train", evenly(len(self.rows["train"]), FITTED), persistent_workers=False)
                encoder.fit(encoder.look(images_of(batch)) for batch in shown)

    def train_dataloader(self) -> TrainLoader:
        """One epoch of complete batches; where the images fill not even one, some come twice."""
        rank, world = self._rank
        pairs = TrainPairs(self.rows["train"], self.train_view)
        epoch_size = max(len(pairs.rows), self.batch_size * world)
        draws = Draws(len(pairs.rows), epoch_size, [(0, 0)], self.batch_size, self.seed, rank, world)  # the view decides on sizes
        batches = self._batches(pairs, self.batch_size, sampler=draws, drop_last=True)
        return self.resumable(batches, draws, epoch_size // (self.batch_size * world))

    def val_dataloader(self) -> Loader:
        """The images to be measured on, those of this rank."""
        rank, world = self._rank
        return self._whole("test", np.array(share_of(len(self.rows["test"]), rank, world)))

    test_dataloader = val_dataloader

    def _whole(self, side: str, numbers: np.ndarray, **options: Any) -> Loader:
        """Single images in order."""
        return Loader(self._batches(Subset(TestPairs(self.rows[side], self.test_view), numbers.tolist()), 1, **options))

    def _batches(self, pairs: Dataset[Sample], size: int, **options: Any) -> DataLoader:
        options = {"persistent_workers": self.workers > 0} | options
        return DataLoader(
            pairs, size, num_workers=self.workers, collate_fn=together, pin_memory=torch.cuda.is_available(), **options
        )


def sample(image: Tensor, target: Tensor, name: str) -> Sample:
    image, target = image.as_subclass(Tensor), target.as_subclass(Tensor)
    return {"image": image, "target": target, "name": name, "skipped": []}


def together(samples: list[Sample]) -> tuple[Batch, list[str]]:
    """A batch of samples, as :class:`Loader` takes it."""
    sizes = {tuple(each["image"].shape[1:]): each["name"] for each in samples}
    if len(sizes) > 1:
        raise HuvrError(f"train_view: images of different sizes, {sizes}, make no batch; let it end in a crop of one size")
    return collate(samples)
