"""Pictures of any source to be drawn anew: those to be measured on, and those that rivals are fitted to."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from torchvision.transforms.v2.functional import pil_to_tensor

from huvr.data import Images
from huvr.data.loader import Loader, workers_of
from huvr.data.samples import Rows
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError

from .looks import looks_at


class Pictures(LightningDataModule):
    """Batches ``{"image": uint8 (B, 3, H, W)}``, in order and without augmentation; unreadable images are left out.

    Args:
        root: as ``root`` of ``huvr.data.Images``; labels are of no concern.
        train_split: the split that rivals are fitted to.
        test_split: the split to be measured on; None finds it: validation, val, valid, dev or test.
        held_out: share of the training split to measure on where there is no such split; the same images that a training
            with this ``held_out`` never saw.
        size: side in pixels of the square in the middle, after the shorter side was resized to it (bicubic, antialiased);
            None takes whole pictures as they are, one a batch.
        train_images, test_images: take only that many, evenly spread over the split.
        batch_size: images per batch, where they have one size.
        workers: processes that read images; None suits the machine, at most 16.

    Raises:
        HuvrError: on setup, when the source cannot be used as asked.
    """

    def __init__(
        self,
        root: str = "",
        train_split: str = "train",
        test_split: str | None = None,
        held_out: float = 0.05,
        size: int | None = 256,
        train_images: int | None = 2000,
        test_images: int | None = None,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if not root:
            raise HuvrError("which data? --data.root with a folder or file of images, a Hugging Face data set, or photos")
        limits = [limit for limit in (size, train_images, test_images) if limit is not None]
        if min([batch_size, *limits]) < 1 or (workers or 0) < 0:
            raise HuvrError("size, train_images, test_images, batch_size: expected 1 or more; workers: 0 or more")
        self.images = Images(root, train_split, test_split, held_out)
        self.size, self.limits = size, (train_images, test_images)
        self.batch_size = 1 if size is None else batch_size
        self.workers = workers_of(workers)

    def setup(self, stage: str | None = None) -> None:
        self.images.setup()
        train, test = self.images.train_rows, self.images.val_rows
        if not (isinstance(train, Rows) and isinstance(test, Rows)):  # no stream, as streaming is off
            raise HuvrError(f"data root {self.images.root!r}: nothing is held out to be measured on: set held_out or test_split")
        self.train, self.test = train.thinned(self.limits[0]), test.thinned(self.limits[1])

    def train_dataloader(self) -> Loader:
        return self._loader(self.train)

    def test_dataloader(self) -> Loader:
        return self._loader(self.test)

    def description(self, measured: int) -> dict[str, str]:
        """The data in words; ``measured`` images were readable."""
        return {
            "train": f"{self.train.source}, {len(self.train)} images",
            "test": f"{self.test.source}, {measured} images",
            "view": "whole" if self.size is None else f"middle {self.size}",
        }

    def _loader(self, rows: Rows) -> Loader:
        return looks_at(rows, pil_to_tensor if self.size is None else centre_crop(self.size), self.batch_size, self.workers)
