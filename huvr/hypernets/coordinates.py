"""Points of an image's domain, (-1, 1) down and across."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.model.inr import cell_centres

Jitter = Literal["none", "uniform", "gaussian"]


def pixel_centres(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Centres (row, column) of all pixels of an (H, W) picture, row by row: ``(1, H * W, 2)``."""
    rows, columns = (cell_centres(side, device=device) for side in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)[None]


def jittered(coordinates: Tensor, size: tuple[int, int], kind: Jitter, generator: torch.Generator) -> Tensor:
    """Points moved at random inside their pixels, each on its own; they stay in the domain.

    Args:
        coordinates: pixel centres, ``(B, N, 2)``.
        size: (H, W) of the picture in pixels.
        kind: "uniform" goes anywhere in the pixel (ginr-ipc, trainer_stage_inr.py); "gaussian" has a deviation of 0.3 of
            half a pixel and stays within 0.5 of it (ANR, model_manager.py).
        generator: on the device of the coordinates.
    """
    if kind == "none":
        return coordinates
    half_pixel = 1 / coordinates.new_tensor(size)
    draw = torch.rand if kind == "uniform" else torch.randn
    noise = draw(coordinates.shape, generator=generator, device=coordinates.device)
    noise = 2 * noise - 1 if kind == "uniform" else (0.3 * noise).clamp(-0.5, 0.5)
    return (coordinates + noise * half_pixel).clamp(-1, 1)


def check_domain(coordinates: Tensor) -> None:
    """Raise a HuvrError unless these are points ``(B, N, 2)`` of the domain."""
    if coordinates.ndim != 3 or coordinates.shape[2] != 2:
        raise HuvrError(f"coordinates of shape {tuple(coordinates.shape)}: expected (B, N, 2), each (row, column)")
    if outside := int((~(coordinates.abs() <= 1).all(-1)).sum()):  # nan is outside too
        raise HuvrError(f"coordinates: {outside} points are outside of the image, whose domain is -1 to 1 down and across")
