"""DiT's own objective: predicted noise and learned variance (improved DDPM, arXiv 2102.09672), 1000 linear steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .objective import TIME_SCALE, Draw, Objective, Predict, Sampler, times_like

STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 2e-2


class Gaussian(NamedTuple):
    """Mean and logarithm of the variance of each number."""

    mean: Tensor
    log_variance: Tensor


class Schedule:
    """Everything that follows from how much of the data is left at each of K steps; double precision, ``(K,)``.

    Args:
        kept: the share of the data's variance left after each step, falling (ᾱ in the papers).
    """

    def __init__(self, kept: Tensor) -> None:
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        betas = 1 - kept / before
        posterior = betas * (1 - before) / (1 - kept)
        self.kept, self.before = kept, before
        self.log_beta = betas.log()
        # At the first step the posterior has no variance: the data are known. The logarithm is that of the next step.
        self.log_posterior = torch.cat([posterior[1:2], posterior[1:]]).log() if len(kept) > 1 else self.log_beta
        self.of_data = betas * before.sqrt() / (1 - kept)
        self.of_noisy = (1 - before) * (1 - betas).sqrt() / (1 - kept)

    def at(self, values: Tensor, steps: Tensor) -> Tensor:
        """Entries of one of these tables, to multiply latents ``(B, N, d)`` by."""
        return values.to(steps.device)[steps].float()[:, None, None]

    def noisy(self, data: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """q(x_t | x_0)."""
        kept = self.at(self.kept, steps)
        return kept.sqrt() * data + (1 - kept).sqrt() * noise

    def data(self, noisy: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """x_0 from x_t and the noise in it."""
        kept = self.at(self.kept, steps)
        return (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()

    def posterior(self, data: Tensor, noisy: Tensor, steps: Tensor) -> Gaussian:
        """q(x_{t-1} | x_t, x_0)."""
        mean = self.at(self.of_data, steps) * data + self.at(self.of_noisy, steps) * noisy
        return Gaussian(mean, self.at(self.log_posterior, steps).expand_as(mean))

    def predicted(self, answer: Tensor, noisy: Tensor, steps: Tensor) -> Gaussian:
        """p(x_{t-1} | x_t) of the network's answer: the noise, and where in between its bounds the log-variance lies."""
        noise, place = answer.chunk(2, -1)
        mean = self.posterior(self.data(noisy, noise, steps), noisy, steps).mean
        share = (place + 1) / 2
        return Gaussian(mean, share * self.at(self.log_beta, steps) + (1 - share) * self.at(self.log_posterior, steps))


class Diffusion(Objective):
    """The network learns the noise by its squared error, and by the variational bound the variance of a step alone.

    One thing differs from DiT: at the first step, the bound's likelihood is the density of the Gaussian. DiT's is that of
    pixels with 256 values, which latents are not.
    """

    outputs: ClassVar[int] = 2
    samplers: ClassVar[dict[Sampler, int]] = {"ddpm": 250, "ddim": 50}

    def __init__(self) -> None:
        self.kept = (1 - torch.linspace(FIRST_BETA, LAST_BETA, STEPS, dtype=torch.float64)).cumprod(0)
        self.schedule = Schedule(self.kept)

    def losses(self, predict: Predict, latents: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        steps = torch.randint(STEPS, (len(latents),), generator=generator, device=latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        noisy = self.schedule.noisy(latents, noise, steps)
        answer = predict(noisy, steps.float() * (TIME_SCALE / STEPS)).float()
        eps, place = answer.chunk(2, -1)
        only_variance = torch.cat([eps.detach(), place], -1)
        return {"noise": (eps - noise).square().mean(), "bound": self.bound(only_variance, latents, noisy, steps).mean()}

    def bound(self, answer: Tensor, latents: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        """The term of the variational bound at each of ``steps``, in bits per number, ``(B,)``."""
        predicted = self.schedule.predicted(answer, noisy, steps)
        divergence = kl(self.schedule.posterior(latents, noisy, steps), predicted)
        density = surprise(latents, predicted)
        return torch.where(steps == 0, density.mean((1, 2)), divergence.mean((1, 2))) / math.log(2)

    def trajectory(self, predict: Predict, draw: Draw, sampler: Sampler, steps: int) -> Iterator[Tensor]:
        taken = torch.linspace(STEPS - 1, 0, steps, dtype=torch.float64).round().long().flip(0)
        schedule, x = Schedule(self.kept[taken]), draw()
        for step in reversed(range(steps)):
            here = torch.full((len(x),), step, device=x.device)
            answer = predict(x, times_like(x, taken[step].item() / STEPS)).float()
            if sampler == "ddpm":
                mean, log_variance = schedule.predicted(answer, x, here)
                x = mean + (log_variance / 2).exp() * draw() if step else mean
            else:
                noise = answer.chunk(2, -1)[0]
                before = schedule.at(schedule.before, here)
                x = before.sqrt() * schedule.data(x, noise, here) + (1 - before).sqrt() * noise
            yield x


def kl(first: Gaussian, second: Gaussian) -> Tensor:
    """KL(first ‖ second) of each number, in nats."""
    difference = first.log_variance - second.log_variance
    apart = (first.mean - second.mean).square() * (-second.log_variance).exp()
    return (difference.exp() + apart - 1 - difference) / 2


def surprise(values: Tensor, gaussian: Gaussian) -> Tensor:
    """-log of the density of each number, in nats."""
    apart = (values - gaussian.mean).square() * (-gaussian.log_variance).exp()
    return (apart + gaussian.log_variance + math.log(2 * math.pi)) / 2
