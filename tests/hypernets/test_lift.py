"""The INR of LIFT against plain SIRENs, one for each cell, and its formulas worked by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from huvr.errors import HuvrError
from huvr.hypernets.lift import LIFT, Latents, LIFTConfig

SMALL = LIFTConfig(cells=4, latents=((1, 6), (2, 5), (4, 3)), width=8, depth=3, omega=4.0)
CASES = {
    "LIFT": SMALL,
    "ReLIFT": replace(SMALL, gamma=2.5, residual=True),
    "three dimensions": replace(SMALL, dims=3, channels=1, cells=2, latents=((1, 4), (2, 3))),
    "Functa": replace(SMALL, cells=1, latents=((1, 6),)),
    "SpatialFuncta": replace(SMALL, cells=1, latents=((4, 3),)),
    "more SIRENs than latents": replace(SMALL, cells=4, latents=((1, 6), (2, 5))),
    "more latents than SIRENs": replace(SMALL, cells=2, latents=((1, 6), (4, 5))),
}


def network(config: LIFTConfig) -> LIFT:
    torch.manual_seed(0)
    return LIFT(config).double()


def some_latents(config: LIFTConfig, images: int = 2) -> Latents:
    torch.manual_seed(1)
    return tuple(torch.randn(images, cells**config.dims, count, dtype=torch.float64) for cells, count in config.latents)


def plain(model: LIFT, latents: Latents, image: int, point: tuple[float, ...]) -> np.ndarray:
    """One point of one image, by the formulas, cell by cell in numpy."""
    c = model.config
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def cell_of(cells: int) -> int:
        number = 0
        for x in point:
            number = number * cells + min(int((x + 1) / 2 * cells), cells - 1)
        return number

    z = latents[0][image, cell_of(c.latents[0][0])].numpy()
    for level, (cells, _) in enumerate(c.latents[1:]):
        both = np.concatenate([z, latents[level + 1][image, cell_of(cells)].numpy()])
        z = state[f"fusions.{level}.weight"] @ both + state[f"fusions.{level}.bias"]
    shifts = (state["to_shifts.weight"] @ z + state["to_shifts.bias"]).reshape(c.depth, c.width)
    corner = [min(math.floor((x + 1) / 2 * c.cells), c.cells - 1) for x in point]
    r = np.array([((x + 1) / 2 * c.cells - k) * 2 - 1 for x, k in zip(point, corner, strict=True)])
    cell, h = cell_of(c.cells), r
    for layer in range(c.depth):
        weight, bias = state[f"weights.{layer}"][cell], state[f"biases.{layer}"][cell, 0]
        frequency = c.gamma if layer == 0 else 1.0
        y = np.sin(c.omega * (frequency * h @ weight + bias + shifts[layer]))
        h = y + h if c.residual and layer == 1 else y
    return h @ state[f"weights.{c.depth}"][cell] + state[f"biases.{c.depth}"][cell, 0] + 0.5


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_all_cells_at_once_equal_a_plain_siren_for_each(name: str) -> None:
    config = CASES[name]
    model, latents = network(config), some_latents(config)
    size = (8, 12) if config.dims == 2 else (4, 8, 4)
    picture = model.render(model.tokens(latents), size)
    assert picture.shape == (2, config.channels, *size)
    for image, place in itertools.product(range(2), itertools.product(*(range(0, side, 3) for side in size))):
        point = tuple((i + 0.5) * 2 / side - 1 for i, side in zip(place, size, strict=True))
        np.testing.assert_allclose(picture[(image, slice(None), *place)], plain(model, latents, image, point), atol=1e-5)


@torch.no_grad()
def test_points_anywhere_in_any_order_the_border_included() -> None:
    model, latents = network(SMALL), some_latents(SMALL)
    points = torch.rand(37, 2, dtype=torch.float64) * 2 - 1
    points = torch.cat([points, torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [0.0, 0.5]], dtype=torch.float64)])
    values = model.query(model.tokens(latents), points)
    for number, point in enumerate(points.tolist()):
        np.testing.assert_allclose(values[1, :, number], plain(model, latents, 1, tuple(point)), atol=1e-12)
    grid = model.query(model.tokens(latents), points[:40].view(5, 8, 2))
    torch.testing.assert_close(grid.flatten(2), values[..., :40])
    assert model.query(model.tokens(latents), points[:0]).shape == (2, 3, 0)


@torch.no_grad()
def test_scale_samples_the_same_picture_more_densely() -> None:
    model, tokens = network(SMALL).float(), network(SMALL).tokens(some_latents(SMALL)).apply(torch.Tensor.float)
    once, thrice = model.render(tokens, (8, 8)), model.render(tokens, (8, 8), scale=3)
    assert thrice.shape == (2, 3, 24, 24)
    torch.testing.assert_close(thrice[..., 1::3, 1::3], once, atol=1e-5, rtol=0)
    assert model.render(tokens, (8, 8), scale=1.3).shape == (2, 3, 10, 10)
    assert model.render(tokens, (5, 7)).isfinite().all()  # no side needs to be divisible for painting


def test_fusion_by_hand() -> None:
    model = LIFT(LIFTConfig(cells=2, latents=((1, 1), (2, 1)), width=2, depth=1))
    with torch.no_grad():
        model.fusions[0].weight.copy_(torch.tensor([[10.0, 1.0]]))
        model.fusions[0].bias.fill_(0.5)
        fused = model.fuse((torch.tensor([[[2.0]]]), torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])))
    assert fused.flatten().tolist() == [21.5, 22.5, 23.5, 24.5]


def test_repeating_follows_the_grid() -> None:
    model = LIFT(LIFTConfig(cells=4, latents=((2, 1), (4, 1)), width=2, depth=1))
    with torch.no_grad():
        model.fusions[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        model.fusions[0].bias.zero_()
        fused = model.fuse((torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]), torch.zeros(1, 16, 1)))
    assert fused.view(4, 4).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_tokens_split_into_the_global_latent_and_the_rest(name: str) -> None:
    config = CASES[name]
    model, latents = network(config), some_latents(config)
    tokens = model.tokens(latents)
    torch.testing.assert_close(tokens.patches + tokens.cls[:, None], model.fuse(latents))
    other = model.tokens((torch.zeros_like(latents[0]), *latents[1:]))
    if config.latents[0][0] == 1:
        assert torch.equal(other.patches, tokens.patches)
        assert not other.cls.any()
        assert tokens.cls.any()
    else:
        assert not tokens.cls.any()


def test_initialisation_is_that_of_siren() -> None:
    torch.manual_seed(0)
    model = LIFT(LIFTConfig(width=32, omega=30.0))
    first, second = model.weights[0].detach(), model.weights[1].detach()
    for weight, limit in ((first, 1 / 2), (second, math.sqrt(6 / 32) / 30)):
        assert 0.99 * limit < weight.abs().max() <= limit
        assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert not torch.equal(second[0], second[1])  # each cell its own
    with torch.no_grad():  # the activations of a SIREN keep their spread from layer to layer
        h = torch.sin(30 * torch.randn(1000, 32))
        assert torch.sin(30 * (h @ second[0])).std() == pytest.approx(math.sqrt(0.5), abs=0.08)


def test_counts_of_the_default_network_by_hand() -> None:
    model = LIFT(LIFTConfig())
    siren = (2 * 64 + 64) + 3 * (64 * 64 + 64) + (64 * 3 + 3)
    shared = (384 * 128 + 128) + (192 * 64 + 64) + (64 * 256 + 256)
    assert sum(p.numel() for p in model.parameters()) == 64 * siren + shared == 901_760  # the paper states 0.915 M
    products = 64 * 64 * (2 * 64 + 3 * 64 * 64 + 64 * 3) + 16 * 384 * 128 + 64 * 192 * 64 + 64 * 64 * 256
    assert model.multiply_adds(64 * 64) == products == 54_263_808  # the paper states 54.52 MFLOPs


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_products_are_what_is_computed(name: str) -> None:
    config = CASES[name]
    model, latents = network(config), some_latents(config, images=1)
    size = (8,) * config.dims
    with FlopCounterMode(display=False) as counter:
        model.paint(model.fuse(latents), model.grid(size))
    assert counter.get_total_flops() == 2 * model.multiply_adds(8**config.dims)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 4}, "dims 4: expected 2 for images or 3 for voxels"),
        ({"width": 0}, "width 0: expected 1 or more"),
        ({"depth": 1, "residual": True}, "depth 1: expected 2 or more"),
        ({"inner_lr": 0.0}, "inner_lr 0.0"),
        ({"latents": ()}, "expected .cells, numbers. of one level or more"),
        ({"latents": ((2, 4), (3, 4))}, "must be a multiple of those of the level before"),
        ({"cells": 3}, "cells 3 and the 4 of the finest latents: one must be a multiple of the other"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        replace(SMALL, **changes)


@torch.no_grad()
def test_places_that_make_no_sense() -> None:
    model = network(SMALL)
    tokens = model.tokens(some_latents(SMALL))
    for outside in (1.001, -2.0, math.nan, math.inf):
        with pytest.raises(HuvrError, match="coordinates outside of the domain: expected -1 to 1"):
            model.query(tokens, torch.tensor([[0.0, outside]]))
    with pytest.raises(HuvrError, match=r"coordinates of shape \(4, 3\): expected \(\.\.\., 2\)"):
        model.query(tokens, torch.zeros(4, 3))
    for size in ((8, 0), (8,)):
        with pytest.raises(HuvrError, match="expected 2 whole numbers from 1"):
            model.render(tokens, size)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(HuvrError, match="expected a positive number"):
            model.render(tokens, (8, 8), scale)
