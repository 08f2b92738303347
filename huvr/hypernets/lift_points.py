"""Points sorted by the cell of the domain that they lie in, so that the INRs of all cells can be asked at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Points:
    """Points of the domain, sorted by the SIREN that paints them.

    Attributes:
        local: coordinates in (-1, 1) inside a cell, ``(M^D, K, n, D)`` for K places in each of M^D cells; places with fewer
            points than n are filled up.
        index: where each point went, ``(N,)`` into the first three axes of ``local``.
        shape: of the N points as they were given.
    """

    local: Tensor
    index: Tensor
    shape: torch.Size


def covering_cells(coarse: int, fine: int, dims: int) -> Tensor:
    """For each of ``fine^dims`` cells the coarse one that it lies in, both in row-major order: ``(fine^dims,)``."""
    cells = torch.arange(coarse**dims, dtype=torch.float32).view(1, 1, *[coarse] * dims)
    return F.interpolate(cells, scale_factor=fine // coarse, mode="nearest").flatten().long()


def sort_points(coordinates: Tensor, cells: int, places: int, order: Tensor) -> Points:
    """Sort points ``(..., D)`` of [-1, 1]^D; there may be none.

    Args:
        coordinates: of the points, by the axes of the signal.
        cells: M, along each axis.
        places: along each axis, a multiple of M: the parts of the cells.
        order: of the places, in row-major numbers, such that those of a cell follow each other; ``(places^D,)``.
    """
    flat = coordinates.flatten(0, -2)
    dims = flat.shape[1]
    axes = ((flat + 1) / 2 * places).long().clamp_max(places - 1)
    strides = places ** torch.arange(dims - 1, -1, -1, device=flat.device)
    place = order.argsort()[(axes * strides).sum(-1)]
    by_place, counts = place.argsort(stable=True), place.bincount(minlength=places**dims)
    among = torch.empty_like(place)  # the number of a point among those of its place
    among[by_place] = torch.arange(len(place), device=flat.device) - (counts.cumsum(0) - counts)[place[by_place]]
    most = int(counts.max())
    index = place * most + among
    local = flat.new_zeros(len(counts) * most, dims)
    local[index] = (flat + 1) * cells - 2 * (axes // (places // cells)) - 1
    return Points(local.view(cells**dims, (places // cells) ** dims, most, dims), index, coordinates.shape[:-1])
