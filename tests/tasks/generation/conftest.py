"""Data whose best denoiser is known: Gaussians and mixtures of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from huvr.tasks.generation.dit import DiTConfig
from huvr.tasks.generation.latents import Latents
from huvr.tasks.generation.module import Generation
from huvr.tasks.generation.objective import Draw, Predict

TINY = DiTConfig(depth=1, width=32, heads=2)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.6, 0.35], [0.35, 0.4]], dtype=torch.float64)


@dataclass
class Mixture:
    """Equally likely Gaussians of one covariance, as latents ``(B, 1, 2)``."""

    means: Tensor
    covariance: Tensor

    @property
    def mean(self) -> Tensor:
        return self.means.mean(0)

    @property
    def spread(self) -> Tensor:
        """The covariance of all of it."""
        return self.covariance + torch.cov(self.means.T, correction=0)

    def expected(self, x: Tensor, keep: float, noise: float) -> tuple[Tensor, Tensor]:
        """E[data | x] and E[e | x] where x = keep · data + noise · e, by Bayes' rule."""
        of_x = keep**2 * self.covariance + noise**2 * torch.eye(2)
        away = x.double() - keep * self.means  # (B, K, 2), as (B, 1, 2) - (K, 2)
        solved = away @ torch.linalg.inv(of_x)
        share = (-(solved * away).sum(-1) / 2).softmax(1)[..., None]
        data = (share * (self.means + keep * solved @ self.covariance)).sum(1, keepdim=True)
        return data, (share * noise * solved).sum(1, keepdim=True)

    def velocity(self) -> Predict:
        """The best answer of flow matching."""

        def predict(x: Tensor, times: Tensor) -> Tensor:
            share = times[0].item() / 1000
            data, noise = self.expected(x, 1 - share, share)
            return noise - data

        return predict


@pytest.fixture(params=["one", "two"])
def mixture(request: pytest.FixtureRequest) -> Mixture:
    if request.param == "one":
        return Mixture(MEAN[None], COVARIANCE)
    return Mixture(torch.tensor([[1.2, 0.9], [-1.0, -0.6]], dtype=torch.float64), 0.15 * COVARIANCE)


@pytest.fixture
def draw() -> Draw:
    """Noise for many samples of such data."""
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(10_000, 1, 2, generator=generator)


def agrees(sample: Tensor, mean: Tensor, covariance: Tensor, tolerance: float = 0.03) -> None:
    """Assert that samples ``(n, 1, 2)`` have this mean and covariance."""
    assert torch.allclose(sample[:, 0].double().mean(0), mean, atol=tolerance)
    assert torch.allclose(torch.cov(sample[:, 0].double().T), covariance, atol=tolerance)


@pytest.fixture(name="agrees")
def agreement() -> Callable[..., None]:
    return agrees


@pytest.fixture
def learn(quiet: Any, encoder: str) -> Callable[..., tuple[Generation, Latents]]:
    """Trains a tiny generator on pictures, for as many steps as asked for."""

    def run(
        root: Any, steps: int = 2, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **trainer: Any
    ) -> Any:
        latents = Latents(
            **({"root": str(root), "size": 32, "batch_size": 4, "workers": 0, "cache": Path("latents")} | (data or {}))
        )
        torch.manual_seed(0)
        module = Generation(**({"encoder": encoder, "dit": TINY, "lr": 1e-2, "pictures_every": 0} | (model or {})))
        resume = trainer.pop("ckpt_path", None)
        quiet(max_steps=steps, **trainer).fit(module, latents, ckpt_path=resume, weights_only=True)
        return module, latents

    return run
