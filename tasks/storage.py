"""Tokens as they would lie on a disk: what they cost there, and what comes back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Storage = Literal["fp16", "int8"]
HALF_MAX, HALF_TINY = torch.finfo(torch.half).max, torch.finfo(torch.half).tiny


def as_stored(tokens: Tensor, kind: Storage) -> Tensor:
    """Tokens ``(..., D)`` in fp32, rounded to what storing them keeps.

    "int8" spreads -127 to 127 over the largest magnitude of each token, which is kept beside it in fp16.
    """
    if kind == "fp16":
        return tokens.clamp(-HALF_MAX, HALF_MAX).half().float()
    # At least the smallest normal number of fp16, so that a token of zeros divides by no zero.
    largest = tokens.abs().amax(-1, keepdim=True).clamp(HALF_TINY, HALF_MAX).half().float()
    return (tokens * (127 / largest)).round().clamp(-127, 127) * (largest / 127)


def size_stored(dim: int, kind: Storage) -> int:
    """Bytes of one token of ``dim`` numbers."""
    return 2 * dim if kind == "fp16" else dim + 2
