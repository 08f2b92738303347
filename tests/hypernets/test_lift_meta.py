"""The inner loop of LIFT against a plain loop over images, and its meta-gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from huvr.errors import HuvrError
from huvr.hypernets.lift import LIFT, LIFTConfig
from huvr.hypernets.lift_meta import (
    descend,
    encode,
    find_latents,
    interpolate,
    objective,
    points_of,
    reconstruct,
    smoothness,
)  # fmt: skip

TINY = LIFTConfig(
    cells=2, latents=((1, 3), (2, 2)), width=4, depth=2, omega=3.0, inner_steps=2, inner_lr=0.7, smoothness=0.05
)  # fmt: skip


def network() -> LIFT:
    torch.manual_seed(0)
    return LIFT(TINY).double()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_distance_of_neighbours_by_hand() -> None:
    grid = torch.tensor([[[1.0, 0], [2, 0]], [[4, 1], [8, 0]]])  # 2 × 2 cells of two numbers
    pairs = [1, 16 + 1, 9 + 1, 36]  # across above, across below, down left, down right
    assert smoothness(grid.view(1, 4, 2), 2).tolist() == [sum(pairs) / 4]
    assert smoothness(torch.rand(5, 1, 2), 2).tolist() == [0] * 5
    volume = torch.arange(8.0).view(1, 8, 1)  # neighbours differ by 4, 2 and 1
    assert smoothness(volume, 3).tolist() == [7]


def masks() -> Tensor:
    """Of the three images the second is all black."""
    mask = torch.rand(3, 1, 4, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[1] = True
    return mask


def by_one_image(model: LIFT, image: Tensor, visible: Tensor) -> list[Tensor]:
    """The inner loop for one image, with nothing but the formula of the loss and autograd."""
    points = model.grid((4, 6))
    latents = [torch.zeros(1, 1, 3, dtype=torch.float64), torch.zeros(1, 4, 2, dtype=torch.float64)]
    for _ in range(2):
        for z in latents:
            z.requires_grad_()
        fused = model.fuse(tuple(latents))
        grid = fused.view(2, 2, 2)
        rough = ((grid[0] - grid[1]) ** 2).sum() + ((grid[:, 0] - grid[:, 1]) ** 2).sum()
        loss = ((model.paint(fused, points)[0] - image)[:, visible] ** 2).mean() + 0.05 * rough / 4
        loss.backward()
        latents = [(z - 0.7 * z.grad).detach() for z in latents]  # type: ignore[operator]
    return latents


@pytest.mark.parametrize("second_order", [True, False])
def test_all_images_at_once_equal_a_loop_over_them(second_order: bool) -> None:
    model = network()
    together = descend(model, images(), points_of(model, images()), second_order)
    for number, image in enumerate(images()):
        for level, alone in zip(together, by_one_image(model, image, torch.ones(4, 6, dtype=torch.bool)), strict=True):
            torch.testing.assert_close(level[number], alone[0], atol=1e-13, rtol=0)
    assert together[0].abs().max() > 0.01


def test_only_visible_pixels_have_a_say_in_the_latents() -> None:
    model, mask = network(), masks()
    found = find_latents(model, images(), mask)
    for number in (0, 2):
        for level, alone in zip(found, by_one_image(model, images()[number], ~mask[number, 0]), strict=True):
            torch.testing.assert_close(level[number], alone[0], atol=1e-13, rtol=0)
    assert not any(level[1].any() for level in found)  # nothing is seen: the latents stay where they begin
    with torch.inference_mode():
        others = find_latents(model, images().masked_fill(mask, torch.nan), mask & True)
    assert all(torch.equal(level, other) for level, other in zip(found, others, strict=True))
    second_order = descend(model, images(), points_of(model, images()), True, mask)
    torch.testing.assert_close(second_order, found)


def test_half_precision_finds_the_latents_of_large_signals() -> None:
    """The error of one voxel of many is too small a number for fp16, as its own gradient is."""
    torch.manual_seed(0)
    model = LIFT(LIFTConfig(dims=3, channels=1, latents=((1, 8), (2, 8)), inner_steps=1))
    signals = (torch.rand(1, 1, 32, 32, 32) > 0.7).float()
    exact = find_latents(model, signals)
    with torch.autocast("cpu", torch.float16):
        found = find_latents(model, signals)
    for level, expected in zip(found, exact, strict=True):
        assert (level - expected).norm() < 0.01 * expected.norm()
    larger = torch.zeros(1, 1, 64, 64, 64, dtype=torch.float16)
    assert all(level.isfinite().all() for level in find_latents(model.half(), larger))


def meta_loss(model: LIFT, second_order: bool) -> Tensor:
    signals = images(2)
    points = points_of(model, signals)
    return objective(model, descend(model, signals, points, second_order), signals, points)[0].mean()


def test_the_meta_gradient_is_that_of_finite_differences() -> None:
    """Through both inner steps, for every kind of parameter, in random directions."""
    model = network()
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in model.named_parameters()), strict=True)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return meta_loss(self.model, second_order=True)

    def loss(*parameters: Tensor) -> Tensor:
        return functional_call(Loss(), {f"model.{name}": p for name, p in zip(names, parameters, strict=True)}, ())

    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


def test_first_order_takes_the_latents_for_constants() -> None:
    model = network()
    signals, points = images(2), points_of(model, images(2))
    constants = tuple(z.detach() for z in descend(model, signals, points, second_order=True))
    expected = torch.autograd.grad(objective(model, constants, signals, points)[0].mean(), list(model.parameters()))
    first = torch.autograd.grad(meta_loss(model, second_order=False), list(model.parameters()))
    second = torch.autograd.grad(meta_loss(model, second_order=True), list(model.parameters()))
    for found, wanted in zip(first, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not torch.allclose(first[0], second[0])


def test_encoding_works_where_gradients_are_off_and_leaves_none() -> None:
    model = network()
    with torch.inference_mode():
        latents = find_latents(model, images() * 1.0)
        painted = reconstruct(model, images())
    expected = descend(model, images(), points_of(model, images()), second_order=False)
    for found, wanted in zip(latents, expected, strict=True):
        assert torch.equal(found, wanted)
    assert all(p.grad is None for p in model.parameters())
    fused = model.fuse(expected)
    torch.testing.assert_close(painted, model.paint(fused, model.grid((4, 6))))
    assert encode(model, images()).grid == (2, 2)


@torch.no_grad()
def test_interpolation_begins_and_ends_at_the_reconstructions() -> None:
    model = network()
    way = interpolate(model, images(), images().flip(0), 5)
    assert way.shape == (3, 5, 3, 4, 6)
    torch.testing.assert_close(way[:, 0], reconstruct(model, images()))
    torch.testing.assert_close(way[:, -1], reconstruct(model, images()).flip(0))
    halves = [(a + b) / 2 for a, b in zip(find_latents(model, images()), find_latents(model, images().flip(0)), strict=True)]
    torch.testing.assert_close(way[:, 2], model.render(model.tokens(tuple(halves)), (4, 6)))


def test_signals_that_do_not_fit() -> None:
    model = network()
    with pytest.raises(HuvrError, match=r"signals of 5x4: each side must be a multiple of the 2 cells along it"):
        encode(model, torch.rand(1, 3, 5, 4))
    with pytest.raises(HuvrError, match="signals of 0x4: each side"):
        encode(model, torch.rand(1, 3, 0, 4))
    for wrong in (*map(torch.rand, ((1, 1, 4, 4), (1, 3, 4), (1, 3, 4, 4, 4))), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(HuvrError, match=r"expected floating-point \(B, 3, H, W\)"):
            encode(model, wrong)


def test_a_few_inner_steps_learn_an_image() -> None:
    model = LIFT(LIFTConfig(cells=2, latents=((1, 8), (2, 16)), width=16, inner_steps=1, inner_lr=1.0))
    signals = images(2).float()
    before = (model.render(model.tokens(tuple(z * 0 for z in find_latents(model, signals))), (4, 6)) - signals).square().mean()
    after = (reconstruct(model, signals) - signals).square().mean()
    assert np.isfinite(after.item())
    assert after < before
