"""Images to data tokens, as TransINR, GINR and ANR alike have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from huvr.errors import HuvrError


@dataclass(frozen=True)
class TokenizerConfig:
    """How images are cut into tokens.

    Attributes:
        image_size: side of the training images in pixels; positions of other sizes are interpolated.
        patch: side of a patch in pixels.
        padding: pixels of black around the image.
    """

    image_size: int = 178
    patch: int = 9
    padding: int = 1

    def __post_init__(self) -> None:
        if self.patch < 1 or self.padding < 0 or self.patch > self.image_size:
            raise HuvrError(f"image_size {self.image_size}, patch {self.patch}, padding {self.padding}: no patch fits")


class Tokenizer(nn.Module):
    """Patches through a linear map, plus a learned position each (trans-inr, imgrec_tokenizer.py).

    Pixels that fill no patch at the lower and right border are not seen.
    """

    def __init__(self, config: TokenizerConfig, width: int) -> None:
        super().__init__()
        side = (config.image_size + 2 * config.padding) // config.patch
        self.grid = (side, side)
        self.project = nn.Conv2d(3, width, config.patch, config.patch, config.padding)
        self.positions = nn.Parameter(torch.randn(1, side * side, width))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``(B, 3, H, W)`` to tokens ``(B, h * w, width)`` and their grid (h, w)."""
        patches = self.project(images)
        grid = (patches.shape[2], patches.shape[3])
        positions = self.positions
        if grid != self.grid:
            positions = resample_abs_pos_embed(positions, list(grid), list(self.grid), num_prefix_tokens=0)
        return patches.flatten(2).transpose(1, 2) + positions, grid
