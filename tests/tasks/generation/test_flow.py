"""Flow matching: the published shift of times, the loss by hand, and samplers against known data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from huvr.tasks.generation.flow import Flow, shift_of, shifted


def collected(predict: Any, draw: Any, sampler: Any, steps: int) -> Tensor:
    *_, sample = Flow().trajectory(predict, draw, sampler, steps)
    return sample


@pytest.mark.parametrize(("tokens", "dim", "factor"), [(256, 768, 6.93), (256, 32, 1.41), (256, 256, 4.0), (256, 8, 1.0)])
def test_shift_as_published(tokens: int, dim: int, factor: float) -> None:
    assert round(shift_of(torch.empty(3, tokens, dim)), 2) == factor


def test_shift_counts_every_number_and_keeps_the_ends() -> None:
    assert shift_of(torch.empty(1, 257, 32)) == pytest.approx(math.sqrt(257 * 32 / 4096))
    times = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert torch.allclose(shifted(times, 4.0), torch.tensor([0.0, 1 / 1.75, 2 / 2.5, 1.0]))
    assert torch.equal(shifted(times, 1.0), times)


def test_loss_is_the_error_of_the_velocity_on_the_straight_path() -> None:
    latents, seen = torch.randn(3, 257, 32), []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        seen.append((x, times))
        return torch.zeros_like(x)

    losses = Flow().losses(predict, latents, torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    drawn = 1 / (1 + torch.exp(-torch.randn(3, generator=again)))
    a = math.sqrt(257 * 32 / 4096)
    times = a * drawn / (1 + (a - 1) * drawn)
    noise = torch.randn(3, 257, 32, generator=again)
    assert torch.allclose(seen[0][1], 1000 * times)
    share = times[:, None, None]
    assert torch.allclose(seen[0][0], (1 - share) * latents + share * noise, atol=1e-6)
    assert losses["velocity"].item() == pytest.approx((noise - latents).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 150), ("heun", 40)])
def test_samplers_recover_mean_and_covariance(mixture: Any, draw: Any, agrees: Any, sampler: str, steps: int) -> None:
    agrees(collected(mixture.velocity(), draw, sampler, steps), mixture.mean, mixture.spread)


def test_heun_is_of_second_order() -> None:
    """dx/dt = x from 1 to 0 by hand; of the network's answers there are two a step, but one in the last."""
    asked: list[float] = []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        asked.append(times[0].item())
        return x

    found = collected(predict, lambda: torch.ones(1, 1, 1), "heun", 2)
    first = 1 - 0.5 * (1 + 0.5) / 2
    assert found.item() == pytest.approx(first * 0.5)
    assert asked == [1000, 500, 500]
    assert collected(predict, lambda: torch.ones(1, 1, 1), "euler", 4).item() == pytest.approx(0.75**4)


def test_times_of_sampling_are_shifted_too() -> None:
    asked: list[float] = []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        asked.append(times[0].item())
        return x

    collected(predict, lambda: torch.ones(1, 256, 256), "euler", 2)
    assert asked == pytest.approx([1000, 1000 * 4 * 0.5 / 2.5])
