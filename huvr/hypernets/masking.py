"""Blackened cells: what MINR trains and measures with (arXiv 2507.22404), for any hyper-network here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from huvr.data.samples import seed_of
from huvr.errors import HuvrError

MaskKind = Literal["random", "block", "grid"]
# the order in which an ordered dither fills cells: each quarter of it is spread evenly
_BAYER2 = np.array([[0, 2], [3, 1]])
_BAYER4 = np.kron(np.ones((2, 2), int), 4 * _BAYER2) + np.kron(_BAYER2, np.ones((2, 2), int))
BAYER = np.kron(np.ones((2, 2), int), 4 * _BAYER4) + np.kron(_BAYER2, np.ones((4, 4), int))


@dataclass(frozen=True)
class Masking:
    """Which cells of an image are hidden.

    Attributes:
        ratio: share of hidden cells, 0 to below 1.
        cell: side of a square cell in pixels; cells at the lower and right border may be smaller.
        kind: "random" hides each cell with probability ``ratio``, independently of the others, so that the share varies
            (MINR, mydatasets.py); "block" hides one rectangle of exactly that share at a random place; "grid" leaves an
            even pattern, shifted at random: at 0.75 one cell of each square of four.
    """

    ratio: float = 0.75
    cell: int = 13
    kind: MaskKind = "random"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise HuvrError(f"masking ratio {self.ratio}: expected 0 to below 1")
        if self.cell < 1:
            raise HuvrError(f"masking cell {self.cell}: expected 1 pixel or more")
        if self.kind not in get_args(MaskKind):
            raise HuvrError(f"masking kind {self.kind!r}: choose one of {', '.join(get_args(MaskKind))}")

    def cells(self, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
        """One drawing, true where hidden: ``(rows, columns)``."""
        if self.kind == "random":
            return generator.random((rows, columns)) < self.ratio
        if self.kind == "grid":
            down, right = generator.integers(8, size=2)
            order = BAYER[np.ix_((np.arange(rows) + down) % 8, (np.arange(columns) + right) % 8)]
            return order >= round(64 * (1 - self.ratio))
        count = round(self.ratio * rows * columns)
        height = max(math.ceil(math.sqrt(self.ratio) * rows), math.ceil(count / columns), 1)
        width = math.ceil(count / height)
        top, left = generator.integers(rows - height + 1), generator.integers(columns - width + 1)
        hidden = np.zeros((rows, columns), bool)
        number = np.arange(height * width).reshape(width, height).T
        hidden[top : top + height, left : left + width] = number < count  # the last column may be shorter
        return hidden

    def masks(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """A mask for each image ``(B, 3, H, W)`` from a seed of its own, true where hidden: ``(B, 1, H, W)``.

        Raises:
            HuvrError: for images smaller than a cell.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.cell:
            raise HuvrError(f"images of {height}x{width} pixels are smaller than a masking cell of {self.cell}")
        rows, columns = (-(-side // self.cell) for side in (height, width))
        drawn = np.stack([self.cells(rows, columns, np.random.default_rng(seed)) for seed in seeds])
        pixels = drawn.repeat(self.cell, axis=1).repeat(self.cell, axis=2)[:, None, :height, :width]
        return torch.from_numpy(pixels).to(images.device)


def hide(images: Tensor, mask: Tensor) -> Tensor:
    """Images with black where the mask ``(B, 1, H, W)`` is true."""
    return images.masked_fill(mask, 0)


class MaskedModule(LightningModule):
    """A training that may see only parts of its images; ``seed`` and the place in the training fix the masks."""

    masking: Masking | None
    seed: int

    def seen(self, images: Tensor, stage: str, batch_idx: int) -> tuple[Tensor, Tensor | None]:
        """What the network sees of the images, and the mask where there is one."""
        if self.masking is None:
            return images, None
        place = ("mask", self.seed, stage, self.global_step, batch_idx, self.global_rank)
        mask = self.masking.masks(images, [seed_of(*place, number) for number in range(len(images))])
        return hide(images, mask), mask


def masked_psnr(painted: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """PSNR in dB over the hidden pixels of each image: ``(B,)``, nan where nothing is hidden."""
    squares = (painted.float() - images.float()).square().mean(1, keepdim=True)
    return -10 * ((squares * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))).log10()
