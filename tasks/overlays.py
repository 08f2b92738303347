"""Pictures of a segmentation: classes as colours over the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from huvr.viz import GAP

WIDTH = 320  # pixels of one of the three tiles
OPACITY = 0.6


def row(image: Tensor, truth: Tensor, prediction: Tensor) -> Tensor:
    """Image | truth | prediction; pixels without a label stay grey in the truth.

    Args:
        image: uint8 ``(3, h, w)``.
        truth, prediction: labels int64 ``(H, W)``, of the same shape as the image but perhaps another size.

    Returns:
        uint8 ``(3, H', 3 * WIDTH + 2 * GAP)``.
    """
    height = max(1, round(WIDTH * image.shape[1] / image.shape[2]))
    image = F.resize(image.cpu(), [height, WIDTH], antialias=True)
    tiles = [image, *(over(image, F.resize_mask(labels.cpu()[None], [height, WIDTH])[0]) for labels in (truth, prediction))]
    gap = image.new_full((3, height, GAP), 255)
    return torch.cat([tiles[0], gap, tiles[1], gap, tiles[2]], 2)


def stacked(rows: list[Tensor]) -> Tensor:
    """Rows one below the other, uint8 ``(3, H, W)``."""
    gap = rows[0].new_full((3, GAP, rows[0].shape[2]), 255)
    return torch.cat([part for each in rows for part in (gap, each)][1:], 1)


def over(image: Tensor, labels: Tensor) -> Tensor:
    """Colours of labels ``(h, w)`` over an image uint8 ``(3, h, w)``."""
    grey = image.float().mean(0).expand(3, -1, -1)
    mixed = torch.lerp(grey, colours(int(labels.max()) + 1)[labels.clamp_min(0)].permute(2, 0, 1), OPACITY)
    return torch.where(labels < 0, grey, mixed).round().to(torch.uint8)


def colours(count: int) -> Tensor:
    """A colour for each class ``(count, 3)``, 0 to 255: the colour map of PASCAL VOC without its black.

    The bits of the number are dealt to red, green and blue in turn, and count from the highest bit of each down.
    """
    numbers = torch.arange(1, max(count, 1) + 1)
    bits = torch.arange(8)
    channels = [((numbers[:, None] >> (3 * bits + channel) & 1) << (7 - bits)).sum(1) for channel in range(3)]
    return torch.stack(channels, 1).float()
