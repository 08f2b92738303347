"""The transformer: published sizes, the identity at first, and what each option does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from timm.layers import build_sincos2d_pos_embed

from huvr.errors import HuvrError
from huvr.tasks.generation.dit import DiT, DiTConfig, sinusoids

SMALL = {"depth": 2, "width": 32, "heads": 2}
VARIANTS = list(itertools.product(("layernorm", "rmsnorm"), ("gelu", "swiglu"), ("sincos", "rope")))


def count(config: DiTConfig, dim: int, global_token: bool) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in DiT(config, (16, 16), dim, 1000, 2, global_token).parameters())


@pytest.mark.parametrize(
    ("shape", "dim", "millions"),
    [
        # patches of 2 on the 32×32×4 latent of the original are patches of 1 with 16 numbers
        ((12, 384, 6), 16, 32.87), ((12, 768, 12), 16, 130.3), ((24, 1024, 16), 16, 457.8), ((28, 1152, 16), 16, 674.8),
        ((12, 768, 12), 32, 130.35), ((12, 768, 12), 256, 130.87), ((28, 1152, 16), 32, 674.9), ((28, 1152, 16), 256, 675.7),
    ],
)  # fmt: skip
def test_published_numbers_of_parameters(shape: tuple[int, int, int], dim: int, millions: float) -> None:
    digits = len(str(millions).split(".")[1])
    assert round(count(DiTConfig(*shape), dim, False) / 1e6, digits) == millions


def test_the_global_token_adds_its_projections_and_nothing_else() -> None:
    config = DiTConfig()
    added = (32 * 768 + 768) + (768 * 64 + 64)
    assert count(config, 32, True) - count(config, 32, False) == added


@pytest.mark.parametrize(("norm", "mlp", "positions"), VARIANTS)
def test_at_first_every_block_is_the_identity_and_the_answer_zero(norm: str, mlp: str, positions: str) -> None:
    net = DiT(DiTConfig(**SMALL, norm=norm, mlp=mlp, positions=positions), (2, 3), 4, 5, 2)  # type: ignore[arg-type]
    x, condition = torch.randn(2, 7, 32), torch.randn(2, 32)
    rope = net.rope.get_embed() if net.rope else None
    for block in net.blocks:
        assert torch.equal(block(x, condition, rope), x)
    answer = net(torch.randn(2, 7, 4), torch.tensor([0.0, 999.0]), torch.tensor([0, 5]))
    assert answer.shape == (2, 7, 8)
    assert not answer.any()


def awake(config: DiTConfig, **options: object) -> DiT:
    """A network whose zeros are other numbers."""
    torch.manual_seed(0)
    net = DiT(config, (2, 3), 4, 5, **options)  # type: ignore[arg-type]
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_places_times_and_labels_matter(positions: str) -> None:
    net = awake(DiTConfig(**SMALL, positions=positions))  # type: ignore[arg-type]
    x, times, labels = torch.randn(1, 7, 4), torch.tensor([300.0]), torch.tensor([1])
    answer = net(x, times, labels)
    order = [0, 2, 1, 3, 4, 5, 6]  # two patches change places
    assert not torch.allclose(net(x[:, order], times, labels)[:, order], answer, atol=1e-3)
    assert not torch.allclose(net(x, times + 1, labels), answer, atol=1e-3)
    assert not torch.allclose(net(x, times, labels + 1), answer, atol=1e-3)


def test_without_global_token_and_classes() -> None:
    net = DiT(DiTConfig(**SMALL), (2, 3), 4, 0, 1, global_token=False)
    assert net(torch.randn(2, 6, 4), torch.rand(2)).shape == (2, 6, 4)
    assert net.embed_label is None


def test_positions_are_those_of_dit_up_to_the_order_of_channels() -> None:
    width, grid = 32, (3, 5)
    omega = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    axes = [np.outer(axis.ravel(), omega) for axis in (columns, rows)]
    published = np.concatenate([part for axis in axes for part in (np.sin(axis), np.cos(axis))], 1)
    order = np.concatenate([np.arange(8) + 8 * place for place in (2, 0, 3, 1)])  # sin rows, sin columns, cos rows, cos columns
    net = DiT(DiTConfig(**SMALL), grid, 4)
    assert np.allclose(net.positions.numpy(), published[:, order], atol=1e-6)
    assert torch.equal(net.positions, build_sincos2d_pos_embed(list(grid), width))
    assert "positions" not in net.state_dict()


def test_times_as_published() -> None:
    time = 37.0
    angles = time * np.exp(-np.log(10000) * np.arange(128) / 128)
    assert np.allclose(sinusoids(torch.tensor([time]))[0], np.concatenate([np.cos(angles), np.sin(angles)]), atol=1e-4)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(HuvrError, match="each head a multiple of 4 wide"):
        DiTConfig(width=100, heads=3)
    with pytest.raises(HuvrError, match="norm 'batchnorm': choose one of layernorm, rmsnorm"):
        DiTConfig(norm="batchnorm")  # type: ignore[arg-type]


def test_times_are_the_same_in_a_step_of_bf16_true() -> None:
    times = torch.linspace(0, 1000, 50)
    expected = sinusoids(times)
    with HalfPrecision("bf16-true").forward_context():
        found = sinusoids(times)
    assert torch.equal(found, expected)
