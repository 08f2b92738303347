"""Labelled images, cropped at random to learn from and seen at their middle otherwise, for heads with the encoder in the loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from huvr.data.images import Images
from huvr.data.loader import Batch, Loader, share_of
from huvr.data.samples import Rows
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError

from .imagenet_labels import Answers, objectnet, real_answers, without_border
from .labelled import common_classes, labels_of, open_labelled
from .looks import Looks, readable

FITTED_IMAGES = 10_000  # enough for the principal components of any token


class Augmented(Images):
    """Labelled images: random crops of the training split, and the middle of each image to be measured on.

    Order and crops follow from ``seed`` alone, and training resumes in the middle of an epoch, as with
    :class:`huvr.data.Images`. Several processes measure each image once; an unreadable one is warned of and left out.

    Args:
        root: a folder with split and class subfolders, a Parquet or Arrow file or a folder of them, or the id of a Hugging
            Face data set, with the column ``label``.
        train_split: the split to learn from.
        test_split: the split to be measured on; None finds it: validation, val, valid, dev or test.
        select_share: share of the training split, always the same, to hold out and choose by; 0 chooses on the split that
            is measured on.
        resize: pixels of the shorter side (bicubic, antialiased) of an image to be measured on.
        crop: side in pixels of the square that the encoder sees.
        scale: least and greatest share of an image's area in a training crop.
        train_images, test_images: take only that many, evenly spread over the split.
        batch_size: images per batch and device.
        workers: processes that load, per device; None suits the machine, at most 16.
        seed: of order and crops.
        real: ``real.json`` with ReaL labels of the test split, ImageNet's validation images; "timm" for timm's copy.
        objectnet: the folder of the ObjectNet release, to be measured on too.

    Raises:
        HuvrError: on setup, for data that cannot be opened, have no labels, or fewer than two classes.
    """

    def __init__(
        self,
        root: str = "",
        train_split: str = "train",
        test_split: str | None = None,
        select_share: float = 0.0,
        resize: int = 256,
        crop: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        train_images: int | None = None,
        test_images: int | None = None,
        batch_size: int = 128,
        workers: int | None = None,
        seed: int = 0,
        real: str | None = None,
        objectnet: str | None = None,
    ) -> None:
        if not root:
            raise HuvrError("which data? --data.root with a folder, a file or a Hugging Face data set of labelled images")
        if not 0 <= select_share < 1:
            raise HuvrError(f"select_share {select_share}: expected a share from 0 to below 1")
        if not 1 <= crop <= resize:
            raise HuvrError(f"resize {resize}, crop {crop}: expected 1 <= crop <= resize")
        if min(limit for limit in (train_images, test_images, 1) if limit is not None) < 1:
            raise HuvrError("train_images, test_images: expected 1 or more")
        super().__init__(root, train_split, size=crop, scale=scale, batch_size=batch_size, workers=workers, seed=seed)
        self.test_split, self.select_share = test_split, select_share
        self.train_images, self.test_images = train_images, test_images
        self.middle = centre_crop(crop, resize)
        self.real, self.objectnet = real, objectnet
        self.classes: list[str] = []
        self.tests: list[Middles] = []

    def setup(self, stage: str | None = None) -> None:
        """Open the source, and see that it can be learnt from."""
        if self.tests:
            return
        train, test = open_labelled(self.root, (self.train_split, self.test_split), (self.train_images, self.test_images))
        self.classes = common_classes(train, test)
        answers = real_answers(self.real, test, len(self.classes)) if self.real else None
        tests = [Middles(test, self.middle, len(self.classes), answers)]
        if self.objectnet:
            rows, answers = objectnet(self.objectnet, len(self.classes))
            view = v2.Compose([without_border, self.middle])
            tests.append(Middles(rows, view, len(self.classes), answers))
        select = test
        if self.select_share:
            train, select = halves(train, self.select_share)
        for rows in (train, test, select):
            rows.readable(0)
        self.train_rows, self.val_rows, self.tests = train, select, tests

    def unaugmented(self) -> Iterator[Tensor]:
        """Training images at their middle, at most ``FITTED_IMAGES``, evenly spread; uint8 ``(n, 3, crop, crop)``."""
        rows: Rows = self.train_rows  # type: ignore[assignment]
        some = Middles(rows.thinned(FITTED_IMAGES), self.middle, len(self.classes))
        return (batch["image"] for batch in self._middles(some, (0, 1)) if batch)

    def val_dataloader(self) -> Loader:
        """The images to choose by."""
        return self._middles(Middles(self.val_rows, self.middle, len(self.classes)), self._rank)  # type: ignore[arg-type]

    def test_dataloader(self) -> list[Loader]:
        """The images to be measured on; then those of ObjectNet, where there are any."""
        return [self._middles(test, self._rank) for test in self.tests]

    def _middles(self, images: Middles, rank: tuple[int, int]) -> Loader:
        """One rank's share; unlike DistributedSampler's, no image is in two of them."""
        mine = share_of(len(images), *rank)
        return Loader(DataLoader(images, self.batch_size, sampler=mine, num_workers=self.workers, collate_fn=readable))


class Middles(Looks):
    """Rows in order, each with its label and, where it has several right answers, with ``answers``, bool ``(classes,)``."""

    def __init__(self, rows: Rows, view: v2.Compose, classes: int, answers: Answers | None = None) -> None:
        super().__init__(rows, view)
        self.labels, self.classes, self.answers = labels_of(rows), classes, answers

    def __getitem__(self, index: int) -> Batch | str:
        sample = super().__getitem__(index)
        if isinstance(sample, str):
            return sample
        sample["label"] = int(self.labels[index])
        if self.answers is None:
            return sample
        answers = torch.zeros(self.classes, dtype=torch.bool)
        answers[self.answers[index]] = True
        return sample | {"answers": answers}


def halves(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """The rows to learn from and those held out, about ``share`` of them, the same whatever the seed of the run."""
    order = np.random.default_rng(0).permutation(len(rows))
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    kept, held_out = (Rows(rows.table, rows.numbers[np.sort(part)], rows.source) for part in (order[count:], order[:count]))
    return kept, held_out
