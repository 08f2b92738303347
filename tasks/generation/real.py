"""Real pictures as a generator saw them: those it learned, and those that it did not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import LightningDataModule
from torch import Tensor

from huvr.data.loader import Loader, workers_of
from huvr.data.samples import Rows
from huvr.data.sources import open_splits
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError

from ..labelled import chosen_splits
from ..looks import looks_at
from .latents import rows_of


class RealPictures(LightningDataModule):
    """Batches ``{"image": uint8 (B, 3, H, W), "row": int64 (B,)}`` in order; unreadable images are left out.

    Args:
        root: as of :class:`.latents.Latents`.
        train_split: the split that the generator learned, against which all is measured.
        test_split: the split that it did not; None finds it: validation, val, valid, dev or test.
        train_images, test_images: take only that many, evenly spread over the split.
        batch_size: images per batch.
        workers: processes that read images; None suits the machine, at most 16.
        cache: folder for what is computed of the training split.

    Raises:
        HuvrError: on setup, for data that cannot be used as asked.
    """

    def __init__(
        self,
        root: str = "",
        train_split: str = "train",
        test_split: str | None = None,
        train_images: int | None = None,
        test_images: int | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        cache: Path = Path("runs/features"),
    ) -> None:
        super().__init__()
        if not root:
            raise HuvrError("which data? --data.root with what the generator learned")
        limits = [limit for limit in (train_images, test_images) if limit is not None]
        if min([batch_size, *limits]) < 1 or (workers or 0) < 0:
            raise HuvrError("train_images, test_images, batch_size: expected 1 or more; workers: 0 or more")
        self.root, self.names, self.limits = root, (train_split, test_split), (train_images, test_images)
        self.batch_size, self.cache = batch_size, cache
        self.workers = workers_of(workers)
        self.size = 0

    def setup(self, stage: str | None = None) -> None:
        splits = open_splits(self.root)
        names = chosen_splits(self.root, splits, self.names)
        found = [rows_of(splits[name], f"{self.root} ({name})", limit) for name, limit in zip(names, self.limits, strict=True)]
        (self.train, self.classes), (self.test, self.test_classes) = found
        size = getattr(self.trainer.lightning_module if self.trainer else None, "size", None)
        if not isinstance(size, int):
            raise HuvrError("data: these are pictures of a generator's size; this model has none")
        self.size = size

    def loader(self, rows: Rows) -> Loader:
        return looks_at(rows, centre_crop(self.size), self.batch_size, self.workers)

    def test_dataloader(self) -> Loader:
        return self.loader(self.test)

    def picture(self, row: int) -> Tensor:
        """One of the training split, uint8 ``(3, H, W)``."""
        view: Callable[..., Tensor] = centre_crop(self.size)
        return view(self.train.readable(row).image)
