"""The parts of the ablations that the package does not have, each against a plain reading."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ablation_variants import CONFIG, VARIANTS, Constant, ImageINR, ImageWise, without_global
from ablations import Data, global_tokens, knn, pretraining, row, size_of
from torch import Tensor

from huvr.model import HUVR, Tokens
from huvr.pretrain import PLACES
from huvr.teacher import TeacherConfig


def plain_image_inr(inr: ImageINR, tokens: Tokens) -> np.ndarray:
    """Features ``(C, H / 4, W / 4)`` of one image, point by point, with a weight matrix made column by column (in numpy)."""
    value = {name: parameter.detach().double().numpy() for name, parameter in inr.named_parameters()}
    u = inr.to_patch(tokens.patches)[0].detach().double().numpy()
    c = inr.to_global(tokens.cls)[0].detach().double().numpy()
    rows, columns = (side * inr.cells for side in tokens.grid)
    frequencies = np.exp(np.linspace(0, math.log(inr.max_frequency), inr.frequencies)) * math.pi
    second = value["layers.1.weight"]  # (out, in)
    matrix = np.stack([second[o] * u[o % len(u)] * c[o] for o in range(len(second))])
    found = np.zeros((value["layers.2.weight"].shape[0], rows, columns))
    for row_number in range(rows):
        for column in range(columns):
            place = np.array([(2 * row_number + 1) / rows - 1, (2 * column + 1) / columns - 1])
            angles = (place[:, None] * frequencies).ravel()
            x = np.concatenate([np.cos(angles), np.sin(angles)])
            for weight, number in ((value["layers.0.weight"], 0), (matrix, 1), (value["layers.2.weight"], 2)):
                unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
                x = np.maximum(unit @ x + value[f"layers.{number}.bias"], 0)
            found[:, row_number, column] = x
    return found


def test_one_inr_an_image_against_a_plain_reading() -> None:
    torch.manual_seed(0)
    inr = ImageINR(12, (6, 10, 5), frequencies=3, max_frequency=4.0, patch=8, upsample=4).double()
    tokens = Tokens(torch.randn(1, 12), torch.randn(1, 6, 12), (2, 3)).apply(Tensor.double)
    features: list[Tensor] = []
    paint = inr.paint
    inr.paint = lambda given: paint(features.append(given) or given)  # type: ignore[method-assign, func-returns-value]
    picture = inr(tokens)
    assert picture.shape == (1, 3, 16, 24)
    np.testing.assert_allclose(features[0][0].detach().numpy(), plain_image_inr(inr, tokens), atol=1e-6)  # points are fp32


def test_a_network_with_one_inr_an_image_has_as_many_numbers_and_sees_the_image_through_its_learned_tokens() -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, modulation="released", image_size=32, tintok_dim=8)
    net = ImageWise(config)
    images = torch.rand(2, 3, 32, 32)
    tintoks = net.compress(net.encode(images))
    assert tintoks.patches.shape == (2, 4, 8)
    assert net.reconstruct(images).shape == images.shape
    assert not torch.equal(tintoks.patches[0], tintoks.patches[1])
    net.reconstruct(images).square().mean().backward()
    assert net.encoder.vit.reg_token.grad.abs().sum() > 0


@pytest.mark.parametrize("modulation", ["free", "released"])
def test_without_the_global_token_no_image_gets_a_factor_of_its_own(modulation: str) -> None:
    torch.manual_seed(0)
    net = without_global(replace(CONFIG, modulation=modulation, image_size=32))
    tokens = net.expand(net.compress(net.encode(torch.rand(2, 3, 32, 32))))
    picture = net.render(tokens)
    assert torch.equal(net.render(replace(tokens, cls=torch.randn_like(tokens.cls))), picture)
    whole = HUVR(net.config)  # the same with a global branch whose output is the neutral element
    whole.load_state_dict(net.state_dict(), strict=False)
    neutral = 1.0 if modulation == "released" else 0.0
    torch.nn.init.zeros_(whole.inr.to_global[1].weight)
    torch.nn.init.constant_(whole.inr.to_global[1].bias, neutral)
    torch.testing.assert_close(whole.render(tokens), picture)
    assert isinstance(net.inr.to_global, Constant)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_paints_and_weighs_what_it_says(name: str) -> None:
    variant = VARIANTS[name]
    teachers = {each: TeacherConfig("test_vit") for each in variant.teachers}
    module = pretraining(variant, teachers, dict.fromkeys(teachers, 0.015), lr=1e-3, seed=0)
    if variant.make is not ImageWise:  # whose learned tokens come first
        torch.manual_seed(0)
        assert torch.equal(module.net.encoder.vit.patch_embed.proj.weight, HUVR(CONFIG).encoder.vit.patch_embed.proj.weight)
    assert module.lr * 32 / 256 == pytest.approx(1e-3)
    assert module.net.reconstruct(torch.rand(1, 3, 96, 96)).shape == (1, 3, 96, 96)
    heads = {place if not number else f"{place}_{number}" for place in variant.places for number in range(len(teachers))}
    assert {*module.net.distill} == heads
    released = dict(zip(PLACES, (4.0, 4.0, 1.0, 1.0), strict=True))
    for head in heads:
        assert module.weights[head] == pytest.approx(released[head.removesuffix("_1")])  # 0.015 over a variance of 0.015
    assert module.weights["koleo"] == 0


def test_neighbours_are_found_by_the_features_given() -> None:
    data = Data.__new__(Data)
    gallery, queries = torch.eye(3).repeat(2, 1), torch.eye(3)
    data.gallery, data.queries, data.classes = (gallery, torch.arange(6) % 3), (queries, torch.arange(3)), 3
    assert knn([gallery, queries], data) == 100
    data.queries = (queries, torch.tensor([0, 2, 1]))
    assert knn([gallery, queries], data) == pytest.approx(33.33)


def test_global_tokens_are_those_of_the_encoder_in_order() -> None:
    torch.manual_seed(0)
    data, net = Data.__new__(Data), HUVR(CONFIG).eval()
    images = torch.randint(256, (3, 3, 96, 96), dtype=torch.uint8)
    data.gallery, data.queries = (images[:2], torch.arange(2)), (images[2:], torch.arange(1))
    gallery, queries = global_tokens(net, data)
    expected = net.encode(images / 255).cls
    torch.testing.assert_close(torch.cat([gallery, queries]), expected)


def test_heads_of_distillation_are_not_counted() -> None:
    net = HUVR(replace(CONFIG, distill_dims={"encoder_cls": 7}))
    assert size_of(net, 3) == {"numbers": 3, "parameters": sum(p.numel() for p in HUVR(CONFIG).parameters())}


def test_a_row_has_means_and_how_far_the_seeds_are_apart() -> None:
    runs = [{"numbers": 8, "parameters": 5, "psnr": value} for value in (20.0, 23.0, 21.5)]
    assert row("inr", "name", runs) == {
        "group": "inr", "variant": "name", "numbers": 8, "parameters": 5, "psnr": 21.5, "psnr_spread": 3.0,
        "psnr_by_seed": [20.0, 23.0, 21.5],
    }  # fmt: skip
