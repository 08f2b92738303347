"""Test-time optimisation against Adam and least squares done by hand, and on every network that paints."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from tiny_hypernets import PAINTERS, pictures, tiny
from torch import Tensor

import huvr
from huvr.errors import HuvrError
from huvr.model import Tokens
from huvr.refine import RATE, refined

GENERATOR = torch.Generator().manual_seed(0)
BASIS = torch.randn(5, 48, generator=GENERATOR) / 7
TARGETS = torch.rand(3, 3, 4, 4, generator=GENERATOR)
START = torch.randn(3, 5, generator=GENERATOR)


def linear(numbers: Tensor) -> Tensor:
    return (numbers @ BASIS.to(numbers.dtype)).view(-1, 3, 4, 4)


def errors(numbers: Tensor) -> np.ndarray:
    return ((linear(numbers) - TARGETS) ** 2).sum(dim=(1, 2, 3)).numpy()


def test_the_first_step_is_adams() -> None:
    """Which is its rate along the sign of the gradient, in deviations of the numbers of each image."""
    (found,) = refined(linear, [START], TARGETS, 1)
    start, basis, targets = START.numpy(), BASIS.numpy(), TARGETS.flatten(1).numpy()
    gradient = 2 * (start @ basis - targets) @ basis.T
    expected = start - RATE * start.std(axis=1, ddof=1, keepdims=True) * np.sign(gradient)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_many_steps_find_the_least_squares() -> None:
    (found,) = refined(linear, [START], TARGETS, 400)
    best = torch.from_numpy(np.linalg.lstsq(BASIS.numpy().T, TARGETS.flatten(1).numpy().T, rcond=None)[0].T)
    np.testing.assert_allclose(errors(found), errors(best), rtol=1e-3)


def test_each_image_is_on_its_own() -> None:
    (together,) = refined(linear, [START * torch.tensor([[1.0], [100.0], [0.01]])], TARGETS, 20)
    (alone,) = refined(linear, [START[:1]], TARGETS[:1], 20)
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("draw", [lambda x: linear(x) + 10 * (x - START).abs().sum(), lambda x: linear(x).sqrt().log()])
def test_never_worse_than_the_start(draw: object) -> None:
    """Where every way leads up, and where there are no finite numbers."""
    (found,) = refined(draw, [START], TARGETS, 3)  # type: ignore[arg-type]
    assert torch.equal(found, START)


def test_no_steps_are_the_start_and_fewer_are_refused() -> None:
    (found,) = refined(linear, [START], TARGETS, 0)
    assert found is START
    with pytest.raises(HuvrError, match="refine -1: expected a number of steps, 0 or more"):
        refined(linear, [START], TARGETS, -1)


def test_numbers_of_other_images_are_refused() -> None:
    with pytest.raises(HuvrError, match="refine: 1 images, and the numbers of 3: expected as many"):
        refined(linear, [START], TARGETS[:1], 3)


def test_tintoks_of_images_of_another_size_are_refused() -> None:
    model = tiny("PatchwiseHUVR").net.eval()
    tintoks = model.compress(model.encode(pictures(2, 24)))
    with pytest.raises(HuvrError, match=r"refine: images of 12x12 have a grid of \(\d, \d\), these TinToks one of \(\d, \d\)"):
        model.refine(tintoks, pictures(2, 12), 3)


def test_a_network_that_was_loaded_under_inference_mode_is_refined() -> None:
    with torch.inference_mode():
        model = huvr.load()
    images = torch.rand(1, 3, 32, 32)
    model.refine(model.compress(model.encode(images)), images, 1)


def test_a_network_in_half_precision_is_refined_in_it() -> None:
    net, images = tiny("PatchwiseHUVR").eval().bfloat16(), pictures(2, 21)
    parameters = net.encode(images.bfloat16())
    better = net.refine(parameters, images, 10)
    assert {tensor.dtype for tensor in better.tensors} == {torch.bfloat16}
    before, after = ((net.render(each) - images).square().mean(dim=(1, 2, 3)) for each in (parameters, better))
    assert (after < before).all()


def test_tokens_in_half_precision_are_refined_in_that_of_the_weights() -> None:
    net, images = tiny("PatchwiseHUVR").eval(), pictures(2, 21)
    with torch.autocast("cpu", torch.bfloat16):
        parameters = net.encode(images)
    assert {tensor.dtype for tensor in net.refine(parameters, images, 2).tensors} == {torch.float32}


@pytest.mark.parametrize("name", PAINTERS)
@torch.inference_mode()
def test_every_network_is_refined_and_none_changes(name: str) -> None:
    with torch.inference_mode(False):
        net = tiny(name).eval()
        weights = {key: value.clone() for key, value in net.state_dict().items()}
    images = pictures(2, 21)
    parameters = net.encode(images)
    better = net.refine(parameters, images, 10)
    assert [tensor.shape for tensor in better.tensors] == [tensor.shape for tensor in parameters.tensors]
    before, after = ((net.render(each) - images).square().mean(dim=(1, 2, 3)) for each in (parameters, better))
    assert (after < before).all()
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_huvr_tiny_draws_better_from_refined_tintoks() -> None:
    """An image whose sides are no multiples of the patch, each of a batch."""
    model = huvr.load()
    rows, columns = torch.meshgrid(torch.arange(75.0), torch.arange(90.0), indexing="ij")
    images = torch.stack([((rows * a + columns * b) / 9).sin() * 0.3 + 0.5 for a, b in ((1, 0.3), (0.2, 1))])
    images = images[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        tintoks = model.compress(model.encode(images))
        scores = []
        for each in (tintoks, model.refine(tintoks, images, 10)):
            assert isinstance(each, Tokens)
            drawn = model.render(model.expand(each), size=(75, 90))
            scores.append(
                [peak_signal_noise_ratio(i.numpy(), d.numpy(), data_range=1.0) for i, d in zip(images, drawn, strict=True)]
            )
    assert torch.equal(each.cls, tintoks.cls)
    assert all(math.isfinite(new) and new > old + 0.3 for old, new in zip(*scores, strict=True))
