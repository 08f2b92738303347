"""The space that a generator works in: TinToks of one encoder, each number brought to mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.model.tokens import Tokens

from ..pca import Moments

LEAST_DEVIATION = 1e-3  # a channel that says nothing must not become noise


@dataclass(frozen=True)
class Statistics:
    """Of TinToks, by channel, ``(d,)`` in fp32; those of global and of patch tokens apart.

    Attributes:
        cls_mean, cls_std, patch_mean, patch_std: mean and standard deviation.
        count: how many images they are of, flipped ones counted too.
    """

    cls_mean: Tensor
    cls_std: Tensor
    patch_mean: Tensor
    patch_std: Tensor
    count: int

    @classmethod
    def of(cls, pieces: Iterable[Tensor]) -> Statistics:
        """Those of sequences ``(n, 1 + h * w, d)``, of which only one piece is in memory at a time."""
        moments: tuple[Moments, Moments] | None = None
        for piece in pieces:
            moments = moments or (Moments(piece.shape[-1], piece.device), Moments(piece.shape[-1], piece.device))
            moments[0].add(piece[:, 0])
            moments[1].add(piece[:, 1:].flatten(0, 1))
        if moments is None or moments[0].count == 0:
            raise HuvrError("no latents to take statistics of")
        (cls_mean, cls_std), (patch_mean, patch_std) = (mean_and_deviation(each) for each in moments)
        return cls(cls_mean, cls_std, patch_mean, patch_std, moments[0].count)

    def near(self, other: Statistics) -> bool:
        """Whether they are of the same images and TinToks, but for what one machine rounds otherwise than another."""
        if self.count != other.count or len(self.patch_mean) != len(other.patch_mean):
            return False
        scales = {"cls": self.cls_std, "patch": self.patch_std}
        names = [(f"{kind}_{what}", scale) for kind, scale in scales.items() for what in ("mean", "std")]
        return all(bool(((getattr(self, n) - getattr(other, n)).abs() < scale / 100).all()) for n, scale in names)

    def plain(self) -> dict[str, Any]:
        """For a file: lists and a number."""
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Statistics:
        known: dict[str, Any] = {n: torch.tensor(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**known)


@dataclass(frozen=True)
class LatentSpace:
    """What latents are of, and how they are normalised.

    Attributes:
        encoder: the HUVR network they come from, as the user named it.
        fingerprint: of that network.
        grid: (h, w) of the patch tokens.
        classes: names of the classes by label; empty where there are none.
        statistics: of the TinToks.
        global_token: whether the global token is part of the latents; where not, its mean stands for it.
    """

    encoder: str
    fingerprint: str
    grid: tuple[int, int]
    classes: list[str]
    statistics: Statistics
    global_token: bool = True

    @property
    def dim(self) -> int:
        """Numbers per token, d."""
        return len(self.statistics.patch_mean)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one image's latents, (N, d)."""
        return int(self.global_token) + self.grid[0] * self.grid[1], self.dim

    def normalise(self, sequence: Tensor) -> Tensor:
        """TinToks ``(…, 1 + h * w, d)``, global token first, to latents ``(…, N, d)``."""
        mean, std = self._scales(sequence.device)
        latents = (sequence - mean) / std
        return latents if self.global_token else latents[..., 1:, :]

    def denormalise(self, latents: Tensor) -> Tokens:
        """Latents ``(B, N, d)`` back to TinToks."""
        mean, std = self._scales(latents.device)
        if not self.global_token:
            latents = torch.cat([torch.zeros_like(latents[:, :1]), latents], 1)
        return Tokens.from_sequence(latents * std + mean, self.grid)

    def _scales(self, device: torch.device) -> tuple[Tensor, Tensor]:
        known, patches = self.statistics, self.grid[0] * self.grid[1]
        mean = torch.cat([known.cls_mean[None], known.patch_mean.expand(patches, -1)])
        std = torch.cat([known.cls_std[None], known.patch_std.expand(patches, -1)])
        return mean.to(device), std.to(device)

    def plain(self) -> dict[str, Any]:
        """For a checkpoint, which holds no classes of ours."""
        return vars(self) | {"statistics": self.statistics.plain()}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> LatentSpace:
        changed = {"grid": tuple(values["grid"]), "statistics": Statistics.from_plain(values["statistics"])}
        return cls(**(values | changed))

    def check(self, fingerprint: str, encoder: str) -> None:
        """Raise unless ``encoder`` is the network these latents come from."""
        if fingerprint != self.fingerprint:
            raise HuvrError(f"encoder {encoder}: the generator learned TinToks of another network, {self.encoder} as it was then")


def mean_and_deviation(moments: Moments) -> tuple[Tensor, Tensor]:
    """By channel, ``(d,)`` in fp32 on the CPU."""
    mean = moments.total / moments.count
    variance = moments.products.diagonal() / moments.count - mean.square()
    return mean.float().cpu(), variance.clamp_min(0).sqrt().clamp_min(LEAST_DEVIATION).float().cpu()
