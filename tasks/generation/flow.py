"""Flow matching on a straight path, with times shifted by how many numbers are generated (RAE, arXiv 2510.11690)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from .objective import TIME_SCALE, Draw, Objective, Predict, Sampler, times_like

BASE_NUMBERS = 4096  # generated numbers from which on times are shifted: those of a 32×32×4 latent


class Flow(Objective):
    """The network learns the velocity ``noise - data`` at ``(1 - t) data + t noise``; t is logit-normal, then shifted.

    Sampling integrates it from t = 1 to 0, by Euler's method or by Heun's, whose last step is one of Euler's.
    """

    outputs: ClassVar[int] = 1
    samplers: ClassVar[dict[Sampler, int]] = {"euler": 50, "heun": 25}

    def losses(self, predict: Predict, latents: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = torch.randn(len(latents), generator=generator, device=latents.device).sigmoid()
        times = shifted(drawn, shift_of(latents))
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        share = times[:, None, None]
        velocity = predict((1 - share) * latents + share * noise, TIME_SCALE * times).float()
        return {"velocity": (velocity - (noise - latents)).square().mean()}

    def trajectory(self, predict: Predict, draw: Draw, sampler: Sampler, steps: int) -> Iterator[Tensor]:
        x = draw()
        times = shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift_of(x)).tolist()
        for now, after in itertools.pairwise(times):
            velocity = predict(x, times_like(x, now)).float()
            if sampler == "heun" and after > 0:
                there = x + (after - now) * velocity
                velocity = (velocity + predict(there, times_like(x, after)).float()) / 2
            x = x + (after - now) * velocity
            yield x


def shift_of(latents: Tensor) -> float:
    """RAE's factor a = √(m / 4096), at least 1, of latents ``(B, N, d)``; m counts every number of an image."""
    return max(1.0, math.sqrt(latents.shape[1:].numel() / BASE_NUMBERS))


def shifted(times: Tensor, factor: float) -> Tensor:
    """Times in [0, 1] moved towards the noise: a t / (1 + (a - 1) t)."""
    return factor * times / (1 + (factor - 1) * times)
