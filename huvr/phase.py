"""Sub-pixel phases: painting between the pixels, so that the INR learns a continuous picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.model.inr import cell_centres

Phase = tuple[float, float]  # (down, right), in pixels


def draw_phase(limit: float, seed: int, step: int) -> Phase:
    """A phase within ``limit`` pixels along each axis; seed and step fix it, so that a resumed run draws the same."""
    down, right = np.random.default_rng((seed, step)).uniform(-limit, limit, 2)
    return float(down), float(right)


def moved(images: Tensor, phase: Phase) -> Tensor:
    """Images ``(B, 3, H, W)`` sampled ``phase`` away from their pixel centres: what ``PatchINR.forward`` shall paint there.

    Bicubic, edges repeated; phase (0, 0) returns the images themselves.
    """
    if phase == (0.0, 0.0):
        return images
    sides = images.shape[-2:]
    rows, columns = (cell_centres(side, 2 * shift / side, images.device) for side, shift in zip(sides, phase, strict=True))
    points = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)  # grid_sample wants (x, y)
    points = points.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, points, mode="bicubic", padding_mode="border", align_corners=False)
