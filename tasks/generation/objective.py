"""What a generator learns and how images follow from it: the interface of :mod:`diffusion` and :mod:`flow`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

# Noisy latents (B, N, d) and times (B,) from 0 to 1000, to the network's answer (B, N, outputs * d).
Predict = Callable[[Tensor, Tensor], Tensor]
# Standard normal numbers (B, N, d), other ones at each call.
Draw = Callable[[], Tensor]

Sampler = Literal["euler", "heun", "ddpm", "ddim"]
TIME_SCALE = 1000


class Objective(ABC):
    """A way to make noise of data, to learn the way back, and to go it.

    Attributes:
        outputs: numbers that the network answers per number of the latents.
        samplers: those that fit, each with its usual number of steps; the first is the default.
    """

    outputs: ClassVar[int]
    samplers: ClassVar[dict[Sampler, int]]

    @abstractmethod
    def losses(self, predict: Predict, latents: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the loss by name, each a mean over the batch, to be added up.

        Args:
            predict: the network.
            latents: ``(B, N, d)``, of about unit deviation.
            generator: for times and noise, on the device of the latents.
        """

    @abstractmethod
    def trajectory(self, predict: Predict, draw: Draw, sampler: Sampler, steps: int) -> Iterator[Tensor]:
        """The latents after each of ``steps`` steps from noise to data; the last are the sample."""


def times_like(latents: Tensor, time: float) -> Tensor:
    """The same time for all of a batch, ``(B,)``, in the network's units."""
    return latents.new_full((len(latents),), TIME_SCALE * time)
