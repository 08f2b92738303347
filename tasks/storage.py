"""Tokens, and the parameters of INRs, as they would lie on a disk: what they cost there, and what comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from huvr.hypernets.interface import INRParameters

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


def parameters_stored(parameters: INRParameters, kind: Storage) -> tuple[INRParameters, int]:
    """Parameters in fp32, each of their vectors stored as a token is, and the bytes of one image."""
    kept = tuple(as_stored(tensor.float(), kind) for tensor in parameters.tensors)
    size = sum(tensor[0, ..., 0].numel() * size_stored(tensor.shape[-1], kind) for tensor in kept)
    return replace(parameters, tensors=kept), size
