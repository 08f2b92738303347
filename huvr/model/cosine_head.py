"""A straight line from tokens to pixels, beside the patch INR: not in the paper, and worth the most of all we tried."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cosines(places: Tensor, size: int) -> Tensor:
    """The orthonormal cosine basis (DCT-II) of ``size`` pixels at places ``(...)``, in pixels from the first one's centre.

    Returns:
        ``(..., frequency)``, in the precision of the places.
    """
    frequencies = torch.arange(size, device=places.device, dtype=places.dtype)
    basis = ((places[..., None] + 0.5) * frequencies * (math.pi / size)).cos() * math.sqrt(2 / size)
    basis[..., 0] *= math.sqrt(0.5)
    return basis


class CosineHead(nn.Module):
    """A linear map of the patch and global vectors to cosine coefficients, which can be painted between the pixels too.

    The patch vector gives a patch its own coefficients, the global vector those that all patches share: none
    at first, so that training begins with the patches. What is linear in the tokens is learnt here within a
    few steps, and the INR is left with the rest (``benchmarks/modulation.py``).

    Args:
        patch_dim, global_dim: numbers of the two vectors.
        patch: patch size in pixels.
    """

    def __init__(self, patch_dim: int, global_dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.of_patch, self.of_global = nn.Linear(patch_dim, 3 * patch**2), nn.Linear(global_dim, 3 * patch**2, bias=False)
        nn.init.zeros_(self.of_global.weight)

    def forward(self, u: Tensor, c: Tensor, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Paint ``(B, 3, h * patch, w * patch)`` from ``(B, h, w, patch_dim)`` and ``(B, global_dim)``."""
        own = self.of_patch.weight.dtype
        exact = torch.promote_types(own, torch.float32)  # half precision cannot even count the frequencies
        pixels = torch.arange(self.patch, device=u.device, dtype=exact)
        basis = [cosines(pixels + shift, self.patch).to(own) for shift in phase]
        patches = self.pixels(self.of_patch, u, basis) + self.pixels(self.of_global, c, basis)[:, None, None]
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), self.patch)

    def pixels(self, linear: nn.Linear, x: Tensor, basis: list[Tensor]) -> Tensor:
        """``(..., dim)`` to ``(..., 3 * patch²)``: the basis goes into the weights, not into every token's coefficients."""
        weight = self.painted(linear.weight, basis)
        return F.linear(x, weight, None if linear.bias is None else self.painted(linear.bias[:, None], basis)[:, 0])

    def painted(self, numbers: Tensor, basis: list[Tensor]) -> Tensor:
        """Coefficients to pixels, ``(3 * patch², N)`` to the same."""
        coefficients = numbers.view(3, self.patch, self.patch, -1)
        return torch.einsum("yk,ckln,xl->cyxn", basis[0], coefficients, basis[1]).flatten(0, 2)
