"""DiT's objective: its formulas against Bayes' rule and torch.distributions, its samplers against known data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from huvr.tasks.generation.diffusion import STEPS, Diffusion, Gaussian, Schedule, kl, surprise

objective = Diffusion()
betas = np.linspace(1e-4, 2e-2, 1000)


def collected(predict: Any, draw: Any, sampler: Any, steps: int) -> Tensor:
    *_, sample = objective.trajectory(predict, draw, sampler, steps)
    return sample


def test_schedule_is_the_published_one() -> None:
    assert np.allclose(objective.kept, np.cumprod(1 - betas), rtol=1e-12)
    assert np.allclose(objective.schedule.log_beta.exp(), betas, rtol=1e-9)


@pytest.mark.parametrize("step", [1, 10, 500, 999])
def test_posterior_is_that_of_bayes(step: int) -> None:
    """q(x_{t-1} | x_t, x_0) is the product of the Gaussians q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    data, noisy, kept = 0.7, -0.4, np.cumprod(1 - betas)
    precision = (1 - betas[step]) / betas[step] + 1 / (1 - kept[step - 1])
    pull = math.sqrt(1 - betas[step]) * noisy / betas[step] + math.sqrt(kept[step - 1]) * data / (1 - kept[step - 1])
    shape = (1, 1, 1)
    found = objective.schedule.posterior(torch.full(shape, data), torch.full(shape, noisy), torch.tensor([step]))
    assert found.mean.item() == pytest.approx(pull / precision, rel=1e-5)
    assert found.log_variance.item() == pytest.approx(-math.log(precision), rel=1e-5)


def test_noise_and_data_are_inverse() -> None:
    data, noise, steps = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0, 400, 999])
    noisy = objective.schedule.noisy(data, noise, steps)
    kept = np.cumprod(1 - betas)[400]
    assert torch.allclose(noisy[1], math.sqrt(kept) * data[1] + math.sqrt(1 - kept) * noise[1])
    assert torch.allclose(objective.schedule.data(noisy, noise, steps), data, atol=1e-3)


def test_terms_of_the_bound() -> None:
    mean, scale = torch.randn(2, 5, 1), torch.rand(2, 5, 1) + 0.1
    first, second = (Normal(m, s) for m, s in zip(mean, scale, strict=True))
    ours = [Gaussian(each.mean, each.variance.log()) for each in (first, second)]
    assert torch.allclose(kl(*ours), kl_divergence(first, second), atol=1e-5)
    values = torch.randn(5, 1)
    assert torch.allclose(surprise(values, ours[0]), -first.log_prob(values), atol=1e-5)


@pytest.mark.parametrize(("place", "log_variance"), [(-1.0, "log_posterior"), (1.0, "log_beta")])
def test_the_bound_of_an_answer(place: float, log_variance: str) -> None:
    """In bits, with the true noise: the means agree, and only the learned variance costs; at the first step, the density."""
    data, noise, steps = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([0, 300])
    noisy = objective.schedule.noisy(data, noise, steps)
    found = objective.bound(torch.cat([noise, torch.full_like(noise, place)], -1), data, noisy, steps)
    scale = getattr(objective.schedule, log_variance)[steps].div(2).exp()
    posterior = objective.schedule.log_posterior[300].div(2).exp()
    expected = kl_divergence(Normal(0, posterior), Normal(0, scale[1])) / math.log(2)
    assert found[1].item() == pytest.approx(expected.item(), abs=1e-3)
    density = -Normal(0, scale[0]).log_prob(torch.tensor(0.0, dtype=torch.float64)) / math.log(2)
    assert found[0].item() == pytest.approx(density.item(), abs=1e-2)


def test_losses_are_the_error_of_the_noise_and_a_bound_that_only_teaches_the_variance() -> None:
    answer = torch.zeros(4, 3, 10, requires_grad=True)
    seen: list[tuple[Tensor, Tensor]] = []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        seen.append((x, times))
        return answer

    latents = torch.randn(4, 3, 5)
    losses = objective.losses(predict, latents, torch.Generator().manual_seed(1))
    (noisy, times), again = seen[0], torch.Generator().manual_seed(1)
    steps = torch.randint(STEPS, (4,), generator=again)
    noise = torch.randn(4, 3, 5, generator=again)
    assert torch.equal(times, steps.float())
    assert torch.equal(noisy, objective.schedule.noisy(latents, noise, steps))
    assert losses["noise"].item() == pytest.approx(noise.square().mean().item(), rel=1e-5)
    losses["bound"].backward()
    assert answer.grad is not None
    assert not answer.grad[..., :5].any()
    assert answer.grad[..., 5:].any()


def test_ddpm_of_few_steps_is_exact_where_the_variance_of_every_step_is(draw: Any, agrees: Any) -> None:
    steps, variance, mean = 12, torch.tensor([0.5, 0.1], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    taken = np.linspace(0, 999, steps).round().astype(int)
    schedule = Schedule(objective.kept[taken])

    def predict(x: Tensor, times: Tensor) -> Tensor:
        index = int(np.flatnonzero(taken == times[0].item())[0])
        kept = schedule.kept[index]
        of_x = kept * variance + 1 - kept
        noise = (1 - kept).sqrt() * (x.double() - kept.sqrt() * mean) / of_x
        of_step = schedule.log_posterior[index].exp() + schedule.of_data[index] ** 2 * variance * (1 - kept) / of_x
        low, high = schedule.log_posterior[index], schedule.log_beta[index]
        place = 2 * (of_step.log() - low) / (high - low) - 1 if index else torch.zeros(2)
        return torch.cat([noise, place.expand_as(noise)], -1)

    agrees(collected(predict, draw, "ddpm", steps), mean, variance.diag())


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 250), ("ddim", 150)])
def test_samplers_recover_mean_and_covariance(mixture: Any, draw: Any, agrees: Any, sampler: str, steps: int) -> None:
    def predict(x: Tensor, times: Tensor) -> Tensor:
        kept = objective.kept[int(times[0])].item()
        noise = mixture.expected(x, math.sqrt(kept), math.sqrt(1 - kept))[1]
        return torch.cat([noise, torch.ones_like(noise)], -1)

    agrees(collected(predict, draw, sampler, steps), mixture.mean, mixture.spread, tolerance=0.06)


def test_all_thousand_steps_and_a_single_one() -> None:
    seen: list[float] = []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        seen.append(times[0].item())
        return torch.zeros(*x.shape[:2], 2 * x.shape[2])

    for steps in (1000, 1):
        collected(predict, lambda: torch.zeros(1, 1, 2), "ddpm", steps)
    assert seen == [*range(999, -1, -1), 999]


def test_a_network_is_told_the_same_times_in_a_step_of_bf16_true() -> None:
    told: list[Tensor] = []

    def predict(noisy: Tensor, times: Tensor) -> Tensor:
        told.append(times)
        return torch.zeros(*noisy.shape[:-1], 2 * noisy.shape[-1])

    latents = torch.zeros(64, 2, 3)
    Diffusion().losses(predict, latents, torch.Generator().manual_seed(0))
    with HalfPrecision("bf16-true").forward_context():
        Diffusion().losses(predict, latents, torch.Generator().manual_seed(0))
    assert torch.equal(*told)
