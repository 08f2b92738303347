"""LIFT and ReLIFT: parallel local SIRENs modulated by latents of several scales (LIFT, arXiv 2503.15420).

The domain (-1, 1)^D is cut into M^D cells. Each cell has a small SIREN of its own, and a layer of it is

    h_l = sin( w0 (W_l h_{l-1} + b_l + m_l) ),        m_l linear in the composite latent of the place.

The composite latent is fused from latents on grids that grow finer, here three, by one linear map per step:

    Z' = Lin1([Up(Z_global); Z_middle]),        Z = Lin2([Up(Z'); Z_local]).

ReLIFT scales the frequencies of the first layer, sin(w0 (gamma W_1 r + b_1 + m_1)), and adds the first layer's output to the
second's. Functa (arXiv 2201.12204) is the case of one cell and a global latent alone, SpatialFuncta (arXiv 2302.03130) that of
one cell and local latents alone.

The paper's text leaves open, and we chose: coordinates count from -1 to 1 inside a cell; Up repeats; each fusion is as wide as
the latents it adds; the linear maps of the modulation are shared by all cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from huvr.errors import HuvrError
from huvr.hypernets.lift_points import Points, covering_cells, sort_points
from huvr.model.inr import cell_centres
from huvr.model.tokens import Tokens

Latents = tuple[Tensor, ...]  # of each level (B, cells^D, numbers), coarse to fine, cells in row-major order


@dataclass(frozen=True)
class LIFTConfig:
    """The shape of a LIFT network and of its inner loop; the defaults are the paper's latents for 64-pixel images.

    Attributes:
        dims: D, 2 for images and 3 for voxels.
        channels: of the signal.
        cells: M, SIRENs along each axis.
        latents: of each level, coarse to fine, its cells along each axis and its numbers per cell.
        width, depth: of a SIREN; its sine layers, before the linear output.
        omega: w0 of the SIRENs.
        gamma: factor on the frequencies of the first layer, above 1 for ReLIFT.
        residual: whether the second layer adds its input, as ReLIFT's does.
        inner_steps, inner_lr: of the descent on the latents, which begins at zero.
        smoothness: weight of the squared distance between neighbouring composite latents.
    """

    dims: int = 2
    channels: int = 3
    cells: int = 8
    latents: tuple[tuple[int, int], ...] = ((1, 256), (4, 128), (8, 64))
    width: int = 64
    depth: int = 4
    omega: float = 10.0
    gamma: float = 1.0
    residual: bool = False
    inner_steps: int = 3
    inner_lr: float = 100.0
    smoothness: float = 0.0

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise HuvrError(f"dims {self.dims}: expected 2 for images or 3 for voxels")
        least = {"channels": 1, "cells": 1, "width": 1, "depth": 2 if self.residual else 1, "inner_steps": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise HuvrError(f"{name} {getattr(self, name)}: expected {limit} or more")
        if not (self.omega > 0 and self.gamma > 0 and self.inner_lr > 0 and self.smoothness >= 0):
            raise HuvrError(
                f"omega {self.omega}, gamma {self.gamma}, inner_lr {self.inner_lr}, smoothness {self.smoothness}: "
                "expected above 0, and for smoothness 0 or more"
            )
        grids = [cells for cells, _ in self.latents]
        if not self.latents or min(min(level) for level in self.latents) < 1:
            raise HuvrError(f"latents {self.latents}: expected (cells, numbers) of one level or more, each 1 or more")
        if any(fine % coarse for coarse, fine in pairwise(grids)):
            raise HuvrError(f"latents {self.latents}: the cells of each level must be a multiple of those of the level before")
        if self.places % self.cells or self.places % grids[-1]:
            raise HuvrError(f"cells {self.cells} and the {grids[-1]} of the finest latents: one must be a multiple of the other")

    @property
    def places(self) -> int:
        """Parts along each axis within which neither SIREN nor latent changes."""
        return max(self.cells, self.latents[-1][0])


class LIFT(nn.Module):
    """The INR of LIFT, from latents to the signal at any coordinates; :mod:`huvr.hypernets.lift_meta` finds the latents."""

    def __init__(self, config: LIFTConfig) -> None:
        super().__init__()
        c = self.config = config
        numbers = [count for _, count in c.latents]
        self.fusions = nn.ModuleList(nn.Linear(coarse + fine, fine) for coarse, fine in pairwise(numbers))
        self.to_shifts = nn.Linear(numbers[-1], c.depth * c.width)
        sizes = [c.dims, *[c.width] * c.depth, c.channels]
        self.weights = nn.ParameterList(torch.empty(c.cells**c.dims, i, o) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(c.cells**c.dims, 1, o) for o in sizes[1:])
        self.reset_parameters()
        for level, (coarse, fine) in enumerate(pairwise(cells for cells, _ in c.latents)):
            self.register_buffer(f"up{level}", covering_cells(coarse, fine, c.dims), persistent=False)
        self.register_buffer("sorted", covering_cells(c.cells, c.places, c.dims).argsort(stable=True), persistent=False)
        latent_of_place = covering_cells(c.latents[-1][0], c.places, c.dims)
        self.register_buffer("latent_of_place", latent_of_place[self.get_buffer("sorted")], persistent=False)

    def reset_parameters(self) -> None:
        """The initialisation of SIREN (Sitzmann et al., 2020); biases as nn.Linear has them, as in its released code."""
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = weight.shape[1]
            limit = math.sqrt(6 / inputs) / self.config.omega if number else 1 / inputs
            nn.init.uniform_(weight, -limit, limit)
            nn.init.uniform_(bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def fuse(self, latents: Latents) -> Tensor:
        """Latents to composite latents on the finest grid, ``(B, cells^D, numbers)``."""
        fused = latents[0]
        for level, (fusion, finer) in enumerate(zip(self.fusions, latents[1:], strict=True)):
            fused = fusion(torch.cat([fused[:, self.get_buffer(f"up{level}")], finer], dim=-1))
        return fused

    def tokens(self, latents: Latents) -> Tokens:
        """The composite latents as tokens: what comes from a global latent as cls, the rest as patches; their sum is exact.

        All that ``query`` and ``render`` need lies in them. Without a global latent, cls is zero. Of a volume, the planes
        stand side by side: the grid is ``(cells, cells²)``.
        """
        whole, cells = self.fuse(latents), self.config.latents[-1][0]
        has_global = self.config.latents[0][0] == 1
        rest = self.fuse((torch.zeros_like(latents[0]), *latents[1:])) if has_global else whole
        return Tokens((whole - rest)[:, 0], rest, (cells, cells ** (self.config.dims - 1)))

    def paint(self, fused: Tensor, points: Points) -> Tensor:
        """The signal ``(B, channels, *points.shape)`` of composite latents, unclamped."""
        c, (cells, places, count) = self.config, points.local.shape[:3]
        # w0 multiplies the parameters, which are far fewer than the points
        shifts = (c.omega * self.to_shifts(fused))[:, self.get_buffer("latent_of_place")]
        shifts = shifts.view(len(fused), cells, places, 1, c.depth, c.width).permute(4, 1, 0, 2, 3, 5)
        weights, biases = [*self.weights], [*self.biases]
        # the same for all images up to the shift, hence the axis of 1
        h = torch.baddbmm(c.omega * biases[0], points.local.flatten(1, 2), c.omega * c.gamma * weights[0])
        h = torch.sin(h.view(cells, 1, places, count, c.width) + shifts[0])
        for layer in range(1, c.depth):
            linear = torch.baddbmm(c.omega * biases[layer], h.flatten(1, 3), c.omega * weights[layer])
            y = torch.sin(linear.view_as(h) + shifts[layer])
            h = y + h if c.residual and layer == 1 else y
        values = torch.baddbmm(biases[-1], h.flatten(1, 3), weights[-1]).view(*h.shape[:-1], c.channels)
        values = values.permute(1, 4, 0, 2, 3).flatten(2)[..., points.index]
        return values.unflatten(2, points.shape) + 0.5

    def locate(self, coordinates: Tensor) -> Points:
        """Points ``(..., D)`` of [-1, 1]^D, in the order of the axes of the signal (row, column), for :meth:`paint`.

        Raises:
            HuvrError: for points outside of the domain.
        """
        c = self.config
        if coordinates.shape[-1:] != (c.dims,):
            raise HuvrError(f"coordinates of shape {tuple(coordinates.shape)}: expected (..., {c.dims})")
        if not (coordinates.abs() <= 1).all():  # not a number is outside, too
            raise HuvrError("coordinates outside of the domain: expected -1 to 1 along each axis")
        points = sort_points(coordinates, c.cells, c.places, self.get_buffer("sorted"))
        return replace(points, local=points.local.to(self.biases[0].dtype))

    def grid(self, size: tuple[int, ...]) -> Points:
        """The centres of the pixels of a picture, or the voxels of a volume, of that size."""
        device = self.biases[0].device
        return self.locate(torch.stack(torch.meshgrid(*(cell_centres(n, device=device) for n in size), indexing="ij"), dim=-1))

    def query(self, tokens: Tokens, coordinates: Tensor) -> Tensor:
        """The signal at points ``(..., D)`` of [-1, 1]^D, the same for all images: ``(B, channels, ...)``, unclamped."""
        return self.paint(tokens.patches + tokens.cls[:, None], self.locate(coordinates))

    def render(self, tokens: Tokens, size: tuple[int, ...], scale: float = 1.0) -> Tensor:
        """The signal on a grid ``scale`` times as dense as ``size``, in the nearest whole numbers of points, unclamped.

        Scale 1 in the size of training is the picture of training.

        Returns:
            ``(B, channels, *sides)``.
        """
        if not 0 < scale < math.inf:
            raise HuvrError(f"scale {scale}: expected a positive number")
        if min(size) < 1 or len(size) != self.config.dims:
            raise HuvrError(f"size {tuple(size)}: expected {self.config.dims} whole numbers from 1")
        return self.paint(tokens.patches + tokens.cls[:, None], self.grid(tuple(max(1, round(scale * n)) for n in size)))

    def multiply_adds(self, points: int) -> int:
        """Products of the linear layers for one image of that many points, from its latents; FLOPs are twice as many."""
        c, numbers = self.config, [count for _, count in self.config.latents]
        siren = c.dims * c.width + (c.depth - 1) * c.width**2 + c.width * c.channels
        fusions = sum(
            cells**c.dims * (coarse + fine) * fine for (cells, fine), coarse in zip(c.latents[1:], numbers, strict=False)
        )
        return points * siren + fusions + c.latents[-1][0] ** c.dims * numbers[-1] * c.depth * c.width
