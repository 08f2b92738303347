"""HUVR at any point: against its INR written out for one point, and against its own pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_hypernets import HUVR_SHAPE, pictures
from torch import Tensor

from huvr.hypernets import patchwise
from huvr.hypernets.coordinates import pixel_centres
from huvr.hypernets.interface import INRParameters
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.model import Tokens


def a_net(modulation: str = "free") -> PatchwiseHUVR:
    torch.manual_seed(0)
    net = PatchwiseHUVR(replace(HUVR_SHAPE, modulation=modulation)).eval()  # type: ignore[arg-type]
    for branch in (net.net.inr.to_patch, net.net.inr.to_global):  # away from where training starts: every factor matters
        torch.nn.init.normal_(branch[1].weight, std=0.3)
    if net.net.inr.cosine_head is not None:
        torch.nn.init.normal_(net.net.inr.cosine_head.of_global.weight, std=0.3)
    return net


def queried(net: PatchwiseHUVR, parameters: INRParameters, size: tuple[int, int]) -> Tensor:
    return net.query(parameters, pixel_centres(size)).transpose(1, 2).unflatten(2, size)


def colour(net: PatchwiseHUVR, tokens: Tokens, pixel: tuple[int, int], offset: tuple[float, float]) -> Tensor:
    """RGB of the first image ``offset`` from the centre of a pixel, number by number, with a weight matrix for every cell."""
    inr, (h, w) = net.net.inr, tokens.grid
    released, (first, second, third), k, r = inr.cosine_head is None, inr.layers, inr.cells, inr.upsample

    def base(weight: Tensor) -> Tensor:
        table = weight.flatten(1).T
        return table / table.norm(dim=0) if released else table

    def cell(row: int, column: int) -> Tensor:
        """Features ``(C,)`` of a cell, zeros around the picture."""
        if not (0 <= row < h * k and 0 <= column < w * k):
            return torch.zeros(third.out_features)
        y, x = (
            2 * (i % k * r + (r - 1) / 2 + shift + 0.5) / inr.patch - 1 for i, shift in zip((row, column), offset, strict=True)
        )
        octaves = [math.pi * inr.max_frequency ** (j / (inr.frequencies - 1)) for j in range(inr.frequencies)]
        angles = [o * y for o in octaves] + [o * x for o in octaves]
        hidden = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        u, c = inr.to_patch(tokens.patches[0, row // k * w + column // k]), inr.to_global(tokens.cls[0])
        weight = second.weight.T * torch.outer(u, c) if released else second.weight.T / second.weight.T.norm(dim=0)
        weight = weight / weight.norm(dim=0) if released else weight * torch.outer(1 + u, 1 + c)
        for table, bias in ((base(first.weight), first.bias), (weight, second.bias), (base(third.weight), third.bias)):
            hidden = torch.relu(hidden @ table + bias)
        return hidden

    row, column = pixel
    around = [cell(row // r + dy, column // r + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    values = torch.stack(around, dim=1).flatten() @ base(inr.to_pixels.weight) + inr.to_pixels.bias
    found = torch.stack([values[channel * r * r + row % r * r + column % r] for channel in range(3)])
    if not released:
        p, head = inr.patch, inr.cosine_head
        u, c = inr.to_patch(tokens.patches[0, row // p * w + column // p]), inr.to_global(tokens.cls[0])
        numbers = (head.of_patch(u) + head.of_global(c)).view(3, p, p)
        for i in range(p):
            for j in range(p):
                down, across = (
                    math.sqrt((1 if f == 0 else 2) / p) * math.cos(math.pi * f * (place % p + shift + 0.5) / p)
                    for f, place, shift in zip((i, j), pixel, offset, strict=True)
                )
                found = found + numbers[:, i, j] * down * across
    return found / 2 + 0.5


PICTURES, POINTS = 1, 10**9  # as LEAST: one way or the other


@pytest.mark.parametrize("modulation", ["free", "released"])
@pytest.mark.parametrize("way", [PICTURES, POINTS])
@torch.no_grad()
def test_a_point_is_what_the_inr_says_there(modulation: str, way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchwise, "LEAST", way)
    monkeypatch.delattr(PatchwiseHUVR, "_paint_points" if way == PICTURES else "_paint_pictures")
    net = a_net(modulation)
    parameters = net.encode(pictures(2, 40)[..., :13, :21])  # a grid of 2x3 patches, cut
    pixels = [(0, 0), (12, 20), (7, 8), (8, 7), (3, 15), (11, 4), (5, 19), (9, 9)]
    offsets = [(0.31, -0.42)] * 8 if way == PICTURES else [(0.1 * n - 0.4, 0.45 - 0.1 * n) for n in range(8)]
    places = torch.tensor(pixels) + 0.5 + torch.tensor(offsets)
    painted = net.query(parameters, (2 * places / torch.tensor([13, 21]) - 1)[None])[0]
    tokens = net._decoded(parameters)
    expected = torch.stack([colour(net, tokens, *point) for point in zip(pixels, offsets, strict=True)])
    torch.testing.assert_close(painted, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("modulation", ["free", "released"])
@torch.no_grad()
def test_whole_scales_are_the_pictures_of_huvr(modulation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = a_net(modulation), pictures(2, 21)
    parameters = net.encode(images)
    for scale in (1, 2, 5):
        whole = net.render(parameters, scale=scale)
        assert torch.equal(whole, net.net.render(net._decoded(parameters), (21, 21), scale))
        for way in (PICTURES, POINTS):
            monkeypatch.setattr(patchwise, "LEAST", way)
            found = queried(net, parameters, (21 * scale, 21 * scale))
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize(
    ("size", "scale", "painted"),
    [
        (None, 1.5, (24, 24)), (None, 0.5, (8, 8)), (None, 1.1, (18, 18)), (None, 0.01, (1, 1)), ((17, 17), 1, (17, 17)),
        ((5, 31), 1, (5, 31)), ((9, 4), 2, (18, 8)), ((16, 16), 2, (32, 32)), ((32, 32), 1, (32, 32)),
    ],
)  # fmt: skip
@torch.no_grad()
def test_any_picture_is_the_query_of_its_pixels(
    size: tuple[int, int] | None, scale: float, painted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = a_net()
    parameters = net.encode(pictures())
    found = net.render(parameters, size, scale)
    assert found.shape == (2, 3, *painted)
    for way in (PICTURES, POINTS):
        monkeypatch.setattr(patchwise, "LEAST", way)
        torch.testing.assert_close(queried(net, parameters, painted), found, rtol=0, atol=1e-4 * float(found.abs().max()))


@torch.no_grad()
def test_scattered_points_are_painted_in_parts_and_each_image_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = a_net()
    parameters = net.encode(pictures())
    points = torch.rand(2, 300, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    points[:, :4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
    whole = net.query(parameters, points)
    monkeypatch.setattr(patchwise, "CELLS", 9 * 2 * 70)
    torch.testing.assert_close(net.query(parameters, points), whole)
    for image in range(2):
        one = INRParameters(tuple(tensor[image : image + 1] for tensor in parameters.tensors), parameters.size)
        torch.testing.assert_close(net.query(one, points[image : image + 1])[0], whole[image], rtol=1e-4, atol=1e-4)
    assert net.query(parameters, points[:1, :0]).shape == (2, 0, 3)


def test_gradients_of_points_are_those_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = a_net(), pictures()
    found = []
    for way in (PICTURES, POINTS):
        monkeypatch.setattr(patchwise, "LEAST", way)
        net.zero_grad()
        queried(net, net.encode(images), (32, 32)).square().mean().backward()
        found.append({name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@torch.no_grad()
def test_other_dtypes() -> None:
    double, half = a_net().double(), a_net().bfloat16()
    expected = queried(double, double.encode(pictures().double()), (17, 17))
    assert expected.dtype == torch.float64
    found = queried(half, half.encode(pictures().bfloat16()), (17, 17))
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()
