"""The patch INR: a tiny coordinate network per patch, modulated by its token and the global token.

The modulation is rank one (patch ⊗ global), so no patch ever gets a weight matrix of its own: with
base weight W (in × out), patch vector u (in), global vector c (out) and hidden state h (in),

    (h ⊙ u) W ⊙ c   equals   h · (W ⊙ (u cᵀ)),

which is one element-wise product and one matrix product shared by all patches of an image.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.model.cosine_head import CosineHead
from huvr.model.tokens import Tokens


def cell_centres(cells: int, shift: float = 0.0, device: torch.device | None = None) -> Tensor:
    """Centres of ``cells`` equal cells of (-1, 1), moved by ``shift``: ``(cells,)``."""
    return (torch.arange(cells, device=device, dtype=torch.float32) + 0.5) * (2 / cells) - 1 + shift


def encode_positions(coordinates: Tensor, frequencies: int, max_frequency: float) -> Tensor:
    """Fourier features of ``(..., 2)`` coordinates (row, column): ``(..., 4 * frequencies)``.

    Frequencies run log-spaced from 1 to ``max_frequency``, in units of π; all cosines come before all sines.
    """
    exponents = torch.linspace(0, math.log(max_frequency), frequencies, dtype=torch.float32, device=coordinates.device)
    angles = (coordinates[..., None] * (math.pi * torch.exp(exponents))).flatten(-2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def unit_columns(weight: Tensor) -> Tensor:
    """``(out, in, ...)`` weights with the norm over all inputs of each output set to one."""
    return F.normalize(weight.flatten(1), dim=1).view_as(weight)


class PatchINR(nn.Module):
    """Decoder tokens to pixels (HUVR, section on the patch-wise INR).

    Three linear layers with ReLU see the coordinates of a ``patch / upsample`` square grid inside the
    patch, the second one modulated by the patch (u) and by the global token (c),

        y = relu( ((h ⊙ (1 + u)) Ŵ) ⊙ (1 + c) + b ),      Ŵ = W with unit columns.

    The feature maps of all patches are stitched together, and one 3×3 convolution and a pixel shuffle by
    ``upsample`` make a picture, to which the cosine head adds what is linear in u and c.

    Args:
        token_dim: numbers per decoder token.
        widths: outputs of the three layers.
        frequencies: frequencies of the positional encoding, per coordinate.
        max_frequency: the highest of them, in units of π per half patch.
        patch: patch size in pixels.
        upsample: pixels per coordinate, along each axis.
    """

    def __init__(
        self,
        token_dim: int,
        widths: tuple[int, int, int] = (256, 256, 256),
        frequencies: int = 32,
        max_frequency: float = 1024.0,
        patch: int = 16,
        upsample: int = 4,
    ) -> None:
        super().__init__()
        if patch % upsample:
            fit = ", ".join(str(each) for each in range(1, patch + 1) if patch % each == 0)
            raise HuvrError(f"inr_upsample {upsample}: expected a divisor of the patch size {patch}: {fit}")
        self.frequencies, self.max_frequency = frequencies, max_frequency
        self.patch, self.upsample, self.cells = patch, upsample, patch // upsample
        sizes = (4 * frequencies, *widths)
        self.layers: Any = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.to_patch = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, widths[0]))
        self.to_global = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, widths[1]))
        self.to_pixels = nn.Conv2d(widths[2], 3 * upsample**2, 3, padding=1)
        self.cosine_head = self.make_cosine_head(widths)

    def make_cosine_head(self, widths: tuple[int, int, int]) -> CosineHead | None:
        return CosineHead(widths[0], widths[1], self.patch)

    def forward(self, tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Paint ``(B, 3, h * patch, w * patch)`` in [-1, 1].

        ``phase`` (down, right), in pixels, moves every sampled point: with (0.25, 0) the picture shows
        what lies a quarter pixel below each pixel centre.
        """
        (h, w), k = tokens.grid, self.cells
        u, c = self.to_patch(tokens.patches).unflatten(1, (h, w)), self.to_global(tokens.cls)
        features = self.features(self.points(phase, u.device).to(u.dtype), u[:, :, None, :, None], c)
        features = features.reshape(u.shape[0], h * k, w * k, -1).permute(0, 3, 1, 2)
        picture = F.pixel_shuffle(self.paint(features), self.upsample)
        return picture if self.cosine_head is None else picture + self.cosine_head(u, c, phase)

    def points(self, phase: tuple[float, float], device: torch.device) -> Tensor:
        """Encoded coordinates of one patch, the same for all: ``(k, 1, k, 4 * frequencies)``."""
        rows, columns = (cell_centres(self.cells, shift * 2 / self.patch, device) for shift in phase)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        return encode_positions(grid, self.frequencies, self.max_frequency)[:, None]

    def features(self, points: Tensor, u: Tensor, c: Tensor) -> Tensor:
        """Features of the whole picture, in its own pixel order from the first product on: no copy later.

        Args:
            points: ``(k, 1, k, E)``.
            u: patch vectors, ``(B, h, 1, w, 1, in)``.
            c: global vectors, ``(B, out)``.

        Returns:
            ``(B, h, k, w, k, C)``.
        """
        first, second, third = self.layers
        x = F.relu(first(points)) * (1 + u)
        weight = unit_columns(second.weight).T * (1 + c[:, None])  # (B, in, out): one matrix an image, none a patch
        y = torch.baddbmm(second.bias[None, None], x.flatten(1, 4), weight).view(*x.shape[:-1], -1)
        return F.relu_(third(F.relu_(y)))

    def paint(self, features: Tensor) -> Tensor:
        """The convolution: ``(B, C, H, W)`` to ``(B, 3 * upsample², H, W)``."""
        return self.to_pixels(features)


class ReleasedPatchINR(PatchINR):
    """The form of the released code: every weight with unit columns, also after modulation.

    The norm of a modulated column is |c| · √((u ⊙ u)(W ⊙ W)), so it needs no modulated matrix; it also
    cancels |c|, which leaves only the signs of the global vector (the default repairs this).
    """

    def make_cosine_head(self, widths: tuple[int, int, int]) -> None:
        return None

    def features(self, points: Tensor, u: Tensor, c: Tensor) -> Tensor:
        first, second, third = self.layers
        x = F.relu(F.linear(points, unit_columns(first.weight), first.bias)) * u
        y = torch.addcmul(second.bias, F.linear(x, second.weight), self.column_scale(u, c))
        return F.relu_(F.linear(F.relu_(y), unit_columns(third.weight), third.bias))

    def column_scale(self, u: Tensor, c: Tensor) -> Tensor:
        """c over the norm of each modulated column, in fp32 or better: ``(B, h, 1, w, 1, out)``."""
        with torch.autocast(u.device.type, enabled=False):
            dtype = torch.promote_types(self.layers[1].weight.dtype, torch.float32)
            u, c, weight = u.to(dtype), c.to(dtype)[:, None, None, None, None], self.layers[1].weight.to(dtype)
            norm = c.abs() * F.linear(u.square(), weight.square()).sqrt()
            return c / norm.clamp_min(1e-12)

    def paint(self, features: Tensor) -> Tensor:
        return F.conv2d(features, unit_columns(self.to_pixels.weight), self.to_pixels.bias, padding=1)
