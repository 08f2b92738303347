"""Guidance, and noise that is an image's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.tasks.generation.diffusion import Diffusion
from huvr.tasks.generation.flow import Flow
from huvr.tasks.generation.sampling import Noise, Sampling, guided

X, TIMES, LABELS = torch.randn(2, 3, 4), torch.tensor([500.0, 500.0]), torch.tensor([0, 1])


class Network:
    """Answers twice as wide that depend on the label, and counts."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        self.sizes.append(len(x))
        return torch.cat([x, 2 * x], -1) * (1 + labels[:, None, None])


def test_guidance_of_one_is_none_to_the_last_bit_and_asks_once() -> None:
    network = Network()
    assert torch.equal(guided(network, LABELS, 9, Sampling(guidance=1))(X, TIMES), network(X, TIMES, LABELS))
    assert network.sizes == [2, 2]


def test_guidance_moves_all_channels_but_not_the_variance() -> None:
    network = Network()
    found = guided(network, LABELS, 9, Sampling(guidance=3))(X, TIMES)
    with_label, without = network(X, TIMES, LABELS), network(X, TIMES, torch.tensor([9, 9]))
    assert torch.allclose(found[..., :4], (without + 3 * (with_label - without))[..., :4])
    assert torch.equal(found[..., 4:], with_label[..., 4:])
    assert network.sizes[0] == 4


@pytest.mark.parametrize(("interval", "size"), [((0.0, 1.0), 4), ((0.5, 0.7), 4), ((0.0, 0.4), 2), ((0.6, 1.0), 2)])
def test_outside_of_the_interval_there_is_no_guidance(interval: tuple[float, float], size: int) -> None:
    network = Network()
    guided(network, LABELS, 9, Sampling(guidance=3, interval=interval))(X, TIMES)
    assert network.sizes == [size]


def test_noise_is_that_of_the_image_whatever_the_batch() -> None:
    cpu = torch.device("cpu")
    together = Noise(5, range(4), (3, 2), cpu)
    alone = [Noise(5, [number], (3, 2), cpu) for number in range(4)]
    for _ in range(3):
        assert torch.equal(together(), torch.cat([each() for each in alone]))
    first, other = Noise(5, range(4), (3, 2), cpu)(), Noise(6, range(4), (3, 2), cpu)()
    assert not torch.equal(first, other)
    assert len(first.flatten().unique()) == 24


def test_plans() -> None:
    assert Sampling().plan(Flow()) == ("euler", 50)
    assert Sampling().plan(Diffusion()) == ("ddpm", 250)
    assert Sampling("ddim", 7).plan(Diffusion()) == ("ddim", 7)


@pytest.mark.parametrize(
    ("options", "objective", "message"),
    [
        ({"sampler": "ddim"}, Flow(), "sampler ddim: this generator learned by flow: choose euler or heun"),
        ({"sampler": "heun"}, Diffusion(), "sampler heun: this generator learned by diffusion: choose ddpm or ddim"),
        ({"sampler": "ddpm", "steps": 1001}, Diffusion(), "steps 1001: ddpm has at most 1000"),
        ({"steps": 0}, Flow(), "steps 0: expected 1 or more"),
        ({"guidance": -1.0}, Flow(), "guidance -1.0: expected 0 or more"),
        ({"interval": (0.5, 0.2)}, Flow(), "interval"),
    ],
)
def test_bad_options(options: dict[str, Any], objective: Any, message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        Sampling(**options).plan(objective)
