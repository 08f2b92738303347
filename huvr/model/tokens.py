"""The one currency between the modules: a global token, patch tokens and their grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from huvr.errors import HuvrError


@dataclass(frozen=True, eq=False)  # tensors do not compare to one answer
class Tokens:
    """Tokens of a batch of images; standard tokens, TinToks and decoder tokens alike.

    Attributes:
        cls: global tokens, ``(B, D)``.
        patches: patch tokens in row-major order, ``(B, h * w, D)``.
        grid: ``(h, w)``, the number of patches down and across.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        h, w = self.grid
        if self.patches.ndim != 3 or self.patches.shape[1] != h * w:
            raise HuvrError(f"patches of shape {tuple(self.patches.shape)} do not fill a {h}x{w} grid: expected (B, {h * w}, D)")
        if self.cls.shape != (self.patches.shape[0], self.patches.shape[2]):
            raise HuvrError(f"cls of shape {tuple(self.cls.shape)} does not go with patches of shape {tuple(self.patches.shape)}")

    @classmethod
    def from_sequence(cls, sequence: Tensor, grid: tuple[int, int]) -> Tokens:
        """Split ``(B, 1 + h * w, D)``, global token first."""
        return cls(sequence[:, 0], sequence[:, 1:], grid)

    @property
    def dim(self) -> int:
        """Numbers per token, D."""
        return self.patches.shape[-1]

    @property
    def sequence(self) -> Tensor:
        """``(B, 1 + h * w, D)``, global token first."""
        return torch.cat([self.cls[:, None], self.patches], dim=1)

    @property
    def map(self) -> Tensor:
        """The patch tokens as a picture, ``(B, D, h, w)``."""
        return self.patches.transpose(1, 2).unflatten(2, self.grid)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """The same per-token function (a projection, a cast, a move) on global and patch tokens."""
        return replace(self, cls=function(self.cls), patches=function(self.patches))
