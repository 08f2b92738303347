"""Rows of a source to samples: decoding, cropping, and the next readable image in place of a corrupt one.

A sample is ``{"image": uint8 (3, H, W), "label": int where labelled, "skipped": what is wrong with corrupt images}``.
Whatever is random in it comes from a seed of its own, so the number of workers changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from huvr.data.reading import read_image
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError

Sample = dict[str, Any]
Size = tuple[int, int]
View = Callable[[Size], Callable[[Image.Image], Tensor]]  # a random crop for every size

# A source of few photographs gives many crops of each, and decoding is the dearest part of a crop.
KEPT_IMAGES = 64
KEPT_PIXELS = 2**25  # 128 MiB in Pillow's 4 bytes a pixel, per worker


class Draw(NamedTuple):
    """One training sample: which image, the seed of its crop, and its size (H, W)."""

    row: int
    seed: int
    size: Size


def seed_of(*what: int | str) -> int:
    """A 64-bit seed that is a pure function of what it is for."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "big")


def size_of(sizes: Sequence[Size], seed: int, epoch: int, batch: int) -> Size:
    """The size that batch number ``batch`` of an epoch has on every rank."""
    return sizes[seed_of("size", seed, epoch, batch) % len(sizes)]


def evenly(count: int, limit: int | None) -> np.ndarray:
    """``limit`` of the numbers below ``count``, evenly spread; all of them where it is None or more."""
    return np.arange(count) if limit is None else np.linspace(0, count, min(limit, count), False, dtype=int)


def decode(row: dict[str, Any], name: str) -> Image.Image:
    """The picture of a row with an undecoded image; ``name`` is for a row without a path."""
    cell = row["image"] or {"path": None, "bytes": None}
    name = cell["path"] or name
    if cell["bytes"] is not None:
        return read_image(cell["bytes"], name)
    if "://" in name:  # a streamed folder of the hub
        with fsspec.open(name, "rb") as file:
            return read_image(file.read(), name)
    return read_image(name)


class Found(NamedTuple):
    """A readable image, its row, and what is wrong with the images passed over to find it."""

    image: Image.Image
    row: dict[str, Any]
    skipped: list[str]

    def sample(self, view: Tensor) -> Sample:
        return {"image": view, "skipped": self.skipped} | {key: self.row[key] for key in self.row if key == "label"}

    def crop(self, seed: int, size: Size, view: View) -> Sample:
        """A random crop that depends on nothing but the arguments."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.sample(view(size)(self.image))

    def middle(self, size: int) -> Sample:
        """The middle square."""
        return self.sample(centre_crop(size)(self.image))


class Rows:
    """Some of the rows of a table, by number; the decoded pictures of a small source stay in memory."""

    def __init__(self, table: datasets.Dataset, numbers: np.ndarray, source: str) -> None:
        self.table, self.numbers, self.source = table, numbers, source
        self._kept: dict[int, Image.Image] = {}
        self._room = KEPT_PIXELS if len(numbers) <= KEPT_IMAGES else 0

    def __len__(self) -> int:
        return len(self.numbers)

    def thinned(self, limit: int | None) -> Rows:
        """``limit`` of the rows, evenly spread; all of them where it is None or more."""
        return self if limit is None else Rows(self.table, self.numbers[evenly(len(self), limit)], self.source)

    def readable(self, index: int) -> Found:
        """The first readable image from ``index`` on, round the end."""
        skipped: list[str] = []
        for step in range(len(self)):
            number = int(self.numbers[(index + step) % len(self)])
            row = self.table[number]
            try:
                return Found(self._picture(number, row), row, skipped)
            except HuvrError as error:
                skipped.append(str(error))
        raise HuvrError(f"{self.source}: none of the {len(self)} images is readable, the first being {skipped[0]}")

    def _picture(self, number: int, row: dict[str, Any]) -> Image.Image:
        if number in self._kept:
            return self._kept[number]
        picture = decode(row, f"{self.source} row {number}")
        if (pixels := picture.width * picture.height) <= self._room:
            self._room -= pixels
            self._kept[number] = picture
        return picture


class TrainSet(Dataset[Sample]):
    """Random crops of rows, one per :class:`Draw`."""

    def __init__(self, rows: Rows, view: View) -> None:
        self.rows, self.view = rows, view

    def __getitem__(self, draw: Draw) -> Sample:
        return self.rows.readable(draw.row).crop(draw.seed, draw.size, self.view)


class HeldOutSet(Dataset[Sample]):
    """Rows in order, each seen at its middle."""

    def __init__(self, rows: Rows, size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.rows.readable(index).middle(self.size)
