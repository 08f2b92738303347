"""What latents are made of and drawn from: a frozen HUVR network, or for comparison the principal components of patches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.files import read_safetensors, whole, write_safetensors
from huvr.model import HUVR
from huvr.model.tokens import Tokens

from ..base import EncoderConfig, FrozenEncoder
from ..rivals import PatchPCA
from .lift_codec import LIFT_PREFIX, LIFTLatents

PCA_PREFIX = "pca:"


class TinToks(FrozenEncoder):
    """Images to TinToks and back.

    Args:
        source: whatever ``huvr.load`` opens.

    Raises:
        HuvrError: for a source that cannot be loaded.
    """

    tokens = "tintok"

    def __init__(self, source: str) -> None:
        super().__init__(EncoderConfig(source, "tintok"))
        self.source, self.patch = source, self._huvr.patch

    @property
    def _huvr(self) -> HUVR:
        assert self.model is not None  # no timm network has TinToks
        return self.model

    def draw(self, tokens: Tokens, scale: int = 1) -> Tensor:
        """Pictures ``(B, 3, H, W)``, unclamped, ``scale`` times as large."""
        return self._huvr.render(self._huvr.expand(tokens), scale=scale)


class PatchComponents:
    """Per-patch PCA as latents, the honest rival of TinToks of the same size; their mean stands for the global token.

    Args:
        source: ``pca:FILE``, the file being one that :func:`save_components` wrote.

    Raises:
        HuvrError: for another file.
    """

    tokens = "pca"

    def __init__(self, source: str) -> None:
        path = Path(source.removeprefix(PCA_PREFIX))
        tensors = read_safetensors(path)
        mean, basis = tensors.get("mean"), tensors.get("basis")
        sides = 0 if mean is None else math.isqrt(mean.numel() // 3)
        if mean is None or basis is None or basis.ndim != 2 or not (mean.numel() == len(basis) == 3 * sides**2 > 0):
            raise HuvrError(f"{path}: not a file of patch components: expected tensors mean (3 patch²,) and basis (3 patch², d)")
        self.source, self.patch, self.dim = source, sides, basis.shape[1]
        self.mean, self.basis = mean, basis

    def to(self, device: torch.device | str) -> PatchComponents:
        self.mean, self.basis = self.mean.to(device), self.basis.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @cached_property
    def fingerprint(self) -> str:
        """Of mean and basis."""
        return hashlib.blake2b(torch.cat([self.mean[:, None], self.basis], 1).cpu().numpy().tobytes(), digest_size=16).hexdigest()

    def look(self, images: Tensor) -> Tokens:
        """Images ``(B, 3, H, W)`` in [0, 1], of whole patches, to tokens of d numbers."""
        height, width = (side // self.patch for side in images.shape[-2:])
        patches = F.unfold(images.to(self.device), self.patch, stride=self.patch).transpose(1, 2)
        components = (patches - self.mean) @ self.basis
        return Tokens(components.mean(1), components, (height, width))

    def draw(self, tokens: Tokens, scale: int = 1) -> Tensor:
        """Pictures ``(B, 3, H, W)``, unclamped."""
        if scale != 1:
            raise HuvrError(f"scale {scale}: patch components can only be drawn at scale 1")
        height, width = (self.patch * side for side in tokens.grid)
        patches = (tokens.patches @ self.basis.T + self.mean).transpose(1, 2)
        return F.fold(patches, (height, width), self.patch, stride=self.patch)


Codec = TinToks | PatchComponents | LIFTLatents


def open_codec(source: str) -> Codec:
    """Of latents that a generator learns: ``pca:FILE``, ``lift:RUN``, or whatever ``huvr.load`` opens."""
    if source.startswith(PCA_PREFIX):
        return PatchComponents(source)
    return LIFTLatents(source) if source.startswith(LIFT_PREFIX) else TinToks(source)


def save_components(images: Iterable[Tensor], patch: int, dim: int, path: Path) -> None:
    """Fit principal components to the patches of images ``(B, 3, H, W)`` in [0, 1], and write them to a safetensors file."""
    pca = PatchPCA(images, patch, dim).pca
    with whole(path) as temporary:
        write_safetensors({"mean": pca.mean.cpu(), "basis": pca.basis.cpu().contiguous()}, temporary)
