"""From noise to latents: every image's own noise, and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from huvr.data.samples import seed_of
from huvr.errors import HuvrError

from .objective import TIME_SCALE, Objective, Predict, Sampler


@dataclass(frozen=True)
class Sampling:
    """How to sample; what is None follows from the objective.

    Attributes:
        sampler: "euler" or "heun" of a flow, "ddpm" or "ddim" of a diffusion.
        steps: how many.
        guidance: scale of classifier-free guidance, on all channels; 1 is none.
        interval: shares of the way from data, 0, to noise, 1, between which to guide (arXiv 2404.07724).
    """

    sampler: Sampler | None = None
    steps: int | None = None
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise HuvrError(f"steps {self.steps}: expected 1 or more")
        if self.guidance < 0:
            raise HuvrError(f"guidance {self.guidance}: expected 0 or more; 1 is none")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise HuvrError(f"interval {tuple(self.interval)}: expected two shares, 0 <= from <= to <= 1")

    def plan(self, objective: Objective) -> tuple[Sampler, int]:
        """Sampler and number of steps.

        Raises:
            HuvrError: for a sampler that does not fit, or more steps than there are.
        """
        sampler = self.sampler or next(iter(objective.samplers))
        if sampler not in objective.samplers:
            kind = type(objective).__name__.lower()
            raise HuvrError(f"sampler {sampler}: this generator learned by {kind}: choose {' or '.join(objective.samplers)}")
        steps = self.steps or objective.samplers[sampler]
        if sampler in ("ddpm", "ddim") and steps > TIME_SCALE:
            raise HuvrError(f"steps {steps}: {sampler} has at most {TIME_SCALE}")
        return sampler, steps


class Noise:
    """Standard normal numbers ``(B, N, d)``; those of an image depend on the seed and its number alone.

    They are drawn on the CPU, so that every device is given the same.
    """

    def __init__(self, seed: int, numbers: Sequence[int], shape: tuple[int, int], device: torch.device) -> None:
        self.streams = [torch.Generator().manual_seed(seed_of("image", seed, number)) for number in numbers]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=stream) for stream in self.streams]).to(self.device)


def guided(
    network: Callable[[Tensor, Tensor, Tensor | None], Tensor], labels: Tensor | None, null: int, sampling: Sampling
) -> Predict:
    """The network's answer for labels, moved away from the one for none (classifier-free guidance, arXiv 2207.12598).

    Only the first d numbers of an answer are moved, noise or velocity: a learned variance is that for the label.

    Args:
        network: noisy latents, times and labels to an answer.
        labels: int64 ``(B,)``; None where there are no classes.
        null: the label that stands for none.
        sampling: scale and interval.
    """
    if labels is None or sampling.guidance == 1:
        return lambda x, times: network(x, times, labels)
    both = torch.cat([labels, torch.full_like(labels, null)])
    low, high = (TIME_SCALE * share for share in sampling.interval)

    def predict(x: Tensor, times: Tensor) -> Tensor:
        if not low <= times[0].item() <= high:
            return network(x, times, labels)
        with_label, without = network(torch.cat([x, x]), torch.cat([times, times]), both).chunk(2)
        dim = x.shape[-1]
        moved = without[..., :dim] + sampling.guidance * (with_label[..., :dim] - without[..., :dim])
        return torch.cat([moved, with_label[..., dim:]], -1)

    return predict
