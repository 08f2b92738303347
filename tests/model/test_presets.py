"""Sizes of networks: parameters counted on the meta device, against the published or tabulated figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from huvr.errors import HuvrError
from huvr.model import HUVR, PRESETS, HUVRConfig

PLACES = ("encoder_cls", "encoder_patches", "decoder_cls", "decoder_patches")
RELEASED = HUVRConfig(modulation="released", distill_dims=dict.fromkeys(PLACES, 1024))


def count(config: HUVRConfig, part: str = "") -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for name, parameter in HUVR(config).named_parameters() if name.startswith(part))


def test_tiny_is_at_most_seven_million() -> None:
    assert count(PRESETS["tiny"]) <= 7_000_000


def test_released_base_and_large() -> None:
    assert count(replace(PRESETS["base"], modulation="released")) == 120_156_048
    assert count(replace(PRESETS["large"], modulation="released")) == 346_202_704


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 123_837_328),
        ({"width": 1024, "depth": 24, "decoder_width": 1280}, 350_934_608),
        ({"decoder_attention": True}, 140_626_832),
        ({"decoder_depth": 0, "decoder_width": 768}, 89_588_368),
        ({"tintok_dim": 8}, 123_794_248),
        ({"tintok_dim": 16}, 123_808_608),
        ({"tintok_dim": 256}, 124_239_408),
        ({"registers": 4}, 123_840_400),
    ],
)
def test_variants_of_the_released_base(changes: dict, parameters: int) -> None:
    assert count(replace(RELEASED, **changes)) == parameters


@pytest.mark.parametrize(
    ("part", "parameters"),
    [
        ("encoder.", 85_708_800),
        ("decoder.", 33_583_104),
        ("bottleneck.down.", 26_144),
        ("bottleneck.up.", 33_856),
        ("inr.layers.", 164_608),
        ("inr.to_pixels.", 110_640),
        ("inr.to_global.", 264_448),
        ("inr.to_patch.", 264_448),
        ("distill.encoder_cls.", 788_992),
        ("distill.decoder_patches.", 1_051_648),
    ],
)
def test_parts_of_the_released_base(part: str, parameters: int) -> None:
    assert count(RELEASED, part) == parameters


def encoder_parameters(width: int, depth: int) -> int:
    hidden = int(width * 8 / 3)
    attention, mlp = 4 * (width**2 + width), 3 * width * hidden + 2 * hidden + width
    norms = 4 * width + 2 * hidden  # before attention and MLP, and inside the MLP
    patches_cls_and_last_norm = 3 * 16**2 * width + width + width + 2 * width
    return patches_cls_and_last_norm + depth * (attention + mlp + norms)


def decoder_parameters(width: int, depth: int, hidden: int, attention: bool) -> int:
    mlp = 2 * width + 2 * width * hidden + hidden + width
    return depth * (mlp + attention * (2 * width + 4 * width**2 + width))


def inr_parameters(token: int, width: int) -> int:
    layers = 128 * width + 2 * width**2 + 3 * width
    heads = 2 * (2 * token + token * width + width)
    conv, cosines = 9 * width * 48 + 48, 2 * width * 768 + 768
    return layers + heads + conv + cosines


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "inr_width"),
    [
        ("tiny", (192, 12), (192, 2, 768, True), 128),
        ("small", (384, 12), (512, 4, 2048, False), 256),
        ("base", (768, 12), (1024, 4, 4096, False), 256),
        ("large", (1024, 24), (1280, 4, 4096, False), 256),
    ],
)
def test_presets_are_as_large_as_tabulated(
    name: str, encoder: tuple[int, int], decoder: tuple[int, int, int, bool], inr_width: int
) -> None:
    down = 2 * encoder[0] + 32 * encoder[0] + 32
    up = 32 * decoder[0] + decoder[0]
    expected = encoder_parameters(*encoder) + down + up + decoder_parameters(*decoder) + inr_parameters(decoder[0], inr_width)
    assert count(PRESETS[name]) == expected


def test_unknown_preset() -> None:
    with pytest.raises(HuvrError, match="unknown preset 'huge': choose one of tiny, small, base, large"):
        HUVR.preset("huge")
