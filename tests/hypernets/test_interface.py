"""The interface that all hyper-networks meet in: pictures at any scale, queries anywhere, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_hypernets import CONTINUOUS, PAINTERS, pictures, tiny

from huvr.errors import HuvrError
from huvr.hypernets.coordinates import jittered, pixel_centres
from huvr.hypernets.patchwise import PatchwiseHUVR


@pytest.mark.parametrize("name", PAINTERS)
@torch.no_grad()
def test_scale_1_is_the_picture_of_training_and_the_query_of_its_pixels(name: str) -> None:
    net, images = tiny(name).eval(), pictures(2, 24)  # not the size of training
    parameters = net.encode(images)
    picture = net.render(parameters)
    assert picture.shape == images.shape
    torch.testing.assert_close(net.reconstruct(images), picture)
    queried = net.query(parameters, pixel_centres((24, 24))).transpose(1, 2).unflatten(2, (24, 24))
    torch.testing.assert_close(queried, picture)
    row, column = 5, 17
    point = torch.tensor([[[(row + 0.5) / 12 - 1, (column + 0.5) / 12 - 1]]])
    torch.testing.assert_close(net.query(parameters, point)[:, 0], picture[:, :, row, column], rtol=1e-4, atol=1e-4)
    larger = net.render(parameters, scale=3)  # the middle one of three by three is the pixel itself
    torch.testing.assert_close(larger[..., 1::3, 1::3], picture, rtol=1e-4, atol=1e-4)
    queried = net.query(parameters, pixel_centres((72, 72))).transpose(1, 2).unflatten(2, (72, 72))
    torch.testing.assert_close(queried, larger, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PAINTERS)
@torch.no_grad()
def test_any_scale_and_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny(name).eval()
    parameters = net.encode(pictures())
    whole = net.render(parameters, scale=1.5)
    assert whole.shape == (2, 3, 24, 24)
    torch.testing.assert_close(net.render(parameters, size=(24, 24)), whole)
    monkeypatch.setattr("huvr.hypernets.interface.POINTS", 100)
    torch.testing.assert_close(net.render(parameters, scale=1.5), whole)
    assert net.render(parameters, (5, 9), scale=2).shape == (2, 3, 10, 18)


@pytest.mark.parametrize("name", PAINTERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.04), (torch.float64, 1e-4)])
@torch.no_grad()
def test_weights_of_another_precision_draw_the_same(name: str, dtype: torch.dtype, tolerance: float) -> None:
    expected, found = (tiny(name).to(kind).reconstruct(pictures().to(kind), scale=2) for kind in (torch.float32, dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", PAINTERS)
@torch.no_grad()
def test_what_cannot_be_asked_is_refused_in_one_line(name: str) -> None:
    net = tiny(name)
    parameters = net.encode(pictures())
    for points, message in (
        (torch.tensor([[[0.0, 1.01], [0.0, 0.0]]]), "1 points are outside of the image, whose domain is -1 to 1"),
        (torch.tensor([[[0.0, math.nan]]]), "1 points are outside"),
        (torch.zeros(1, 4, 3), r"shape \(1, 4, 3\): expected \(B, N, 2\)"),
        (torch.zeros(3, 4, 2), "coordinates of 3 images, parameters of 2"),
    ):
        with pytest.raises(HuvrError, match=message):
            net.query(parameters, points)
    with pytest.raises(HuvrError, match="4x16 pixels are smaller than a patch of"):
        net.encode(pictures()[..., :4, :])
    with pytest.raises(HuvrError, match="expected floating-point"):
        net.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    for scale in (0, -1, math.inf, math.nan):
        with pytest.raises(HuvrError, match="scale "):
            net.render(parameters, scale=scale)
    with pytest.raises(HuvrError, match="size"):
        net.render(parameters, size=(0, 16))


@torch.no_grad()
def test_only_huvr_has_tintoks() -> None:
    for name in CONTINUOUS:
        with pytest.raises(HuvrError, match=f"{name} has no TinToks, only HUVR has"):
            tiny(name).tintoks(pictures())
    net = tiny("PatchwiseHUVR")
    assert isinstance(net, PatchwiseHUVR)
    parameters = net.encode(pictures())
    assert parameters.numbers == 5 * 8
    assert torch.equal(parameters.tensors[1], net.net.compress(net.net.encode(pictures())).patches)
    wrapped = PatchwiseHUVR.of(net.net)
    assert wrapped.net is net.net
    torch.testing.assert_close(wrapped.reconstruct(pictures()), net.net.reconstruct(pictures()))


@pytest.mark.parametrize("name", PAINTERS)
@torch.no_grad()
def test_tokens_for_frozen_tasks(name: str) -> None:
    tokens = tiny(name).eval().tokens(pictures(2, 21))
    assert tokens.grid == ((3, 3) if name == "PatchwiseHUVR" else (4, 4))
    assert tokens.patches.isfinite().all()
    if name != "PatchwiseHUVR":
        torch.testing.assert_close(tokens.cls, tokens.patches.mean(1))


def test_jitter_stays_in_its_pixels() -> None:
    size, half = (10, 25), torch.tensor([1 / 10, 1 / 25])
    centres = pixel_centres(size).expand(40, -1, -1)
    assert centres[0, 26].tolist() == pytest.approx([-0.7, -0.88])  # second row, second column
    assert jittered(centres, size, "none", torch.Generator()) is centres
    for kind, limit, deviation in (("uniform", 1.0, 1 / math.sqrt(3)), ("gaussian", 0.5, None)):
        moved = (jittered(centres, size, kind, torch.Generator().manual_seed(0)) - centres) / half  # type: ignore[arg-type]
        assert limit - 0.01 < moved.abs().max() <= limit + 1e-5
        assert moved.mean().abs() < 0.01
        if deviation:
            assert moved.std() == pytest.approx(deviation, rel=0.02)
        else:  # of 0.3, the tails beyond 0.5 set onto it: 9.6 %
            assert (moved.abs() > 0.4999).float().mean() == pytest.approx(2 * 0.04779, rel=0.05)
        again = jittered(centres, size, kind, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        assert torch.equal((again - centres) / half, moved)
