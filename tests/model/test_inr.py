from __future__ import annotations

import math

import inr_reference
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from huvr.errors import HuvrError
from huvr.model import Tokens
from huvr.model.inr import PatchINR, ReleasedPatchINR, cell_centres, encode_positions

KINDS = {"free": PatchINR, "released": ReleasedPatchINR}


def an_inr(kind: str, **changes) -> PatchINR:
    torch.manual_seed(0)
    shape = {"token_dim": 24, "widths": (20, 16, 12), "frequencies": 5, "max_frequency": 8.0, "patch": 8, "upsample": 4}
    inr = KINDS[kind](**{**shape, **changes})
    for branch in (inr.to_patch, inr.to_global):  # away from where training starts, so that every factor matters
        torch.nn.init.normal_(branch[1].weight, std=0.3)
    if inr.cosine_head is not None:
        torch.nn.init.normal_(inr.cosine_head.of_global.weight, std=0.3)
    return inr


def some_tokens(batch: int = 2, grid: tuple[int, int] = (2, 3), dim: int = 24) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    cls, patches = torch.randn(batch, dim, generator=generator), torch.randn(batch, grid[0] * grid[1], dim, generator=generator)
    return Tokens(cls.requires_grad_(), patches.requires_grad_(), grid)


def test_cell_centres_by_hand() -> None:
    assert cell_centres(4).tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert cell_centres(2, shift=0.125).tolist() == [-0.375, 0.625]


def test_encoded_positions_by_hand() -> None:
    # two frequencies, π and 4π, at row 1/2 and column 1/4
    expected = [math.cos(math.pi / 2), math.cos(2 * math.pi), math.cos(math.pi / 4), math.cos(math.pi)]
    expected += [math.sin(math.pi / 2), math.sin(2 * math.pi), math.sin(math.pi / 4), math.sin(math.pi)]
    torch.testing.assert_close(encode_positions(torch.tensor([0.5, 0.25]), 2, 4.0), torch.tensor(expected))


def test_positions_are_the_same_in_a_step_of_bf16_true() -> None:
    """For which Lightning makes half precision torch's default, and not after it."""
    coordinates = cell_centres(16)[:, None].expand(-1, 2)
    expected = encode_positions(coordinates, 32, 1024.0)
    with HalfPrecision("bf16-true").forward_context():
        found = encode_positions(coordinates, 32, 1024.0)
    assert torch.equal(found, expected)


def test_released_frequencies_run_from_1_to_1024() -> None:
    at_one = encode_positions(torch.tensor([[1 / 1024, 0.0]], dtype=torch.float64), 32, 1024.0)[0]
    angles = torch.atan2(at_one[64:96], at_one[:32]) * 1024 / math.pi
    torch.testing.assert_close(angles[:2], torch.tensor([1.0, 1.2506]).to(angles), atol=1e-4, rtol=0)
    torch.testing.assert_close(angles[-1].abs(), torch.tensor(1024.0).to(angles), atol=1e-1, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_materialised_network(kind: str) -> None:
    inr, tokens = an_inr(kind), some_tokens()
    ours, plain = inr(tokens), inr_reference.picture(inr, tokens, kind)
    assert ours.shape == (2, 3, 16, 24)
    torch.testing.assert_close(ours, plain, atol=1e-5 * plain.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_materialised_network(kind: str) -> None:
    inr, tokens = an_inr(kind), some_tokens()
    inputs = {"cls": tokens.cls, "patches": tokens.patches, **dict(inr.named_parameters())}
    target = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    ours, plain = (
        torch.autograd.grad((image - target).square().sum(), list(inputs.values()))
        for image in (inr(tokens), inr_reference.picture(inr, tokens, kind))
    )
    largest = max(other.abs().max().item() for other in plain)
    for name, mine, other in zip(inputs, ours, plain, strict=True):
        # the released form cancels |c|: what is left of that gradient is rounding
        dead = kind == "released" and (name == "cls" or name.startswith("to_global"))
        scale = largest if dead else other.abs().max().item()
        torch.testing.assert_close(mine, other, atol=1e-5 * scale, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_no_patch_gets_a_weight_matrix(kind: str) -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            self.numbers = max([self.numbers, *sizes])
            return out

    inr, tokens = an_inr(kind, widths=(96, 80, 12)), some_tokens(batch=2, grid=(4, 4))
    with Largest() as largest:
        inr(tokens).square().sum().backward()
    assert 0 < largest.numbers < 2 * 16 * 96 * 80 / 4


def test_released_form_sees_only_the_signs_of_the_global_vector() -> None:
    inr, tokens = an_inr("released"), some_tokens()
    picture = inr(tokens)
    with torch.no_grad():
        inr.to_global[1].weight *= 3
        inr.to_global[1].bias *= 3
    torch.testing.assert_close(inr(tokens), picture, atol=1e-6, rtol=1e-5)


def test_default_form_sees_the_global_token() -> None:
    inr, tokens = an_inr("free"), some_tokens()
    other = Tokens(tokens.cls.roll(1, dims=0), tokens.patches, tokens.grid)
    assert (inr(tokens) - inr(other)).abs().mean() > 0.05 * inr(tokens).std()


def test_phase_moves_the_sampled_points() -> None:
    # one cell further down is 4 pixels; inside a patch, the second row of cells moved up shows the first
    inr, tokens = an_inr("free", upsample=1, patch=4), some_tokens(grid=(1, 1))
    # without the convolution's neighbours: only the kernel's centre
    with torch.no_grad():
        inr.to_pixels.weight[:, :, [0, 2]] = 0
        inr.to_pixels.weight[:, :, :, [0, 2]] = 0
    plain, down, right = inr(tokens), inr(tokens, (1.0, 0.0)), inr(tokens, (0.0, 1.0))
    torch.testing.assert_close(down[:, :, :-1], plain[:, :, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(right[:, :, :, :-1], plain[:, :, :, 1:], atol=1e-5, rtol=0)


def test_patch_must_be_a_multiple_of_upsample() -> None:
    with pytest.raises(HuvrError, match="inr_upsample 4: expected a divisor of the patch size 10: 1, 2, 5, 10"):
        PatchINR(8, patch=10)
