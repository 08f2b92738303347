"""A straight line from tokens to pixels, beside the patch INR: not in the paper, and worth the most of all we tried."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.model.tokens import Tokens


def cosines(size: int, shift: float = 0.0, device: torch.device | None = None) -> Tensor:
    """The orthonormal cosine basis (DCT-II) of ``size`` pixels, ``shift`` pixels off their centres: ``(pixel, frequency)``."""
    frequencies = torch.arange(size, device=device, dtype=torch.float32)
    basis = ((frequencies[:, None] + 0.5 + shift) * frequencies * (math.pi / size)).cos() * math.sqrt(2 / size)
    basis[:, 0] *= math.sqrt(0.5)
    return basis


class CosineHead(nn.Module):
    """A linear map of tokens to the cosine coefficients of each patch, which can be painted between the pixels too.

    The patch token gives a patch its own coefficients, the global token those that all patches share: none
    at first, so that training begins with the patches. What is linear in the tokens is learnt here within a
    few steps, and the INR is left with the rest (``benchmarks/modulation.py``).

    Args:
        token_dim: numbers per decoder token.
        patch: patch size in pixels.
    """

    def __init__(self, token_dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.to_patch: Any = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, 3 * patch**2))
        self.to_global: Any = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, 3 * patch**2))
        nn.init.zeros_(self.to_global[1].weight)

    def forward(self, tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Paint ``(B, 3, h * patch, w * patch)``; ``phase`` as for :class:`~huvr.model.inr.PatchINR`."""
        basis = [cosines(self.patch, shift, tokens.patches.device) for shift in phase]
        patches = self.pixels(self.to_patch, tokens.patches, basis) + self.pixels(self.to_global, tokens.cls, basis)[:, None]
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, tokens.grid), self.patch)

    def pixels(self, head: Any, x: Tensor, basis: list[Tensor]) -> Tensor:
        """``(..., D)`` to ``(..., 3 * patch²)``: the basis goes into the weights, not into every token's coefficients."""
        norm, linear = head
        numbers = torch.cat([linear.weight, linear.bias[:, None]], dim=1).view(3, self.patch, self.patch, -1)
        painted = torch.einsum("yk,ckld,xl->cyxd", basis[0], numbers, basis[1]).flatten(0, 2)
        return F.linear(norm(x), painted[:, :-1], painted[:, -1])
