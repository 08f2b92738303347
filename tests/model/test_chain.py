"""The whole chain: any size, any scale."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.model import HUVR, HUVRConfig, Tokens

TINY = HUVRConfig(
    image_size=32, patch=8, width=48, depth=1, heads=3, tintok_dim=6, decoder_width=40, decoder_depth=1, decoder_heads=2,
    decoder_hidden=64, inr_widths=(16, 20, 24), inr_frequencies=4, inr_max_frequency=16.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> HUVR:
    torch.manual_seed(0)
    return HUVR(TINY).eval()


@pytest.fixture(scope="module")
def decoded(model: HUVR) -> Tokens:
    with torch.no_grad():
        return model.expand(model.compress(model.encode(torch.rand(2, 3, 16, 24))))


def test_reconstruct_is_the_chain(model: HUVR) -> None:
    images = torch.rand(2, 3, 24, 40)
    tokens = model.encode(images)
    tintoks = model.compress(tokens)
    assert (tokens.dim, tintoks.dim, model.expand(tintoks).dim) == (48, 6, 40)
    assert tokens.grid == tintoks.grid == (3, 5)
    assert torch.equal(model.render(model.expand(tintoks)), model.reconstruct(images))
    assert torch.equal(model(images), model.reconstruct(images))


def test_pictures_are_in_0_1(model: HUVR, decoded: Tokens) -> None:
    assert torch.equal(model.paint(decoded), (model.inr(decoded) + 1) / 2)


@pytest.mark.parametrize("size", [(17, 23), (8, 9), (7, 30)])
def test_sizes_that_are_no_multiple_of_the_patch(model: HUVR, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    down, right = (-side % 8 for side in size)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (0, down), (0, right)), mode="edge"))
    assert torch.equal(model.encode(images).sequence, model.encode(padded).sequence)
    assert torch.equal(model.reconstruct(images), model.reconstruct(padded)[..., : size[0], : size[1]])


def test_scale_1_is_the_picture_of_training(model: HUVR, decoded: Tokens) -> None:
    assert torch.equal(model.render(decoded), model.paint(decoded))
    assert torch.equal(model.render(decoded, scale=1, size=(16, 24)), model.paint(decoded))


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_size_crops_before_scaling(model: HUVR, decoded: Tokens, scale: int) -> None:
    whole = model.render(decoded, scale=scale)
    assert whole.shape == (2, 3, 16 * scale, 24 * scale)
    assert torch.equal(model.render(decoded, size=(13, 9), scale=scale), whole[..., : 13 * scale, : 9 * scale])


def test_scale_3_contains_scale_1(model: HUVR, decoded: Tokens) -> None:
    assert torch.equal(model.render(decoded, scale=3)[..., 1::3, 1::3], model.render(decoded))


def test_scale_2_draws_a_quarter_pixel_off_the_centres(model: HUVR, decoded: Tokens) -> None:
    picture = model.render(decoded, scale=2)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(picture[..., dy::2, dx::2], model.paint(decoded, (dy / 2 - 0.25, dx / 2 - 0.25)))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_ramp_stays_a_ramp_at_any_scale(model: HUVR, decoded: Tokens, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def ramp(tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        row, column = torch.arange(16.0) + 0.5 + phase[0], torch.arange(24.0) + 0.5 + phase[1]
        return (10 * row[:, None] + column).expand(2, 3, 16, 24)

    monkeypatch.setattr(model, "paint", ramp)
    row, column = ((torch.arange(n * scale) + 0.5) / scale for n in (16, 24))
    torch.testing.assert_close(model.render(decoded, scale=scale)[1, 2], 10 * row[:, None] + column)


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_scales_that_are_none(model: HUVR, decoded: Tokens, scale: float) -> None:
    with pytest.raises(HuvrError, match=f"scale {scale}: expected a whole number"):
        model.render(decoded, scale=scale)


@pytest.mark.parametrize("size", [(17, 24), (16, 25), (0, 4)])
def test_sizes_outside_the_tokens(model: HUVR, decoded: Tokens, size: tuple[int, int]) -> None:
    with pytest.raises(HuvrError, match=f"size {size[0]}x{size[1]}: this grid of tokens covers 1x1 to 16x24 pixels"):
        model.render(decoded, size=size)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 4, 16, 16), (0, 3, 16, 16), (1, 3, 0, 4)])
def test_images_of_a_wrong_shape(model: HUVR, shape: tuple[int, ...]) -> None:
    with pytest.raises(HuvrError, match=r"expected \(B, 3, H, W\)"):
        model.encode(torch.zeros(shape))


def test_what_is_no_tensor_and_tokens_of_another_kind(model: HUVR) -> None:
    with pytest.raises(HuvrError, match=r"images of type str: expected a tensor \(B, 3, H, W\) in \[0, 1\]"):
        model.encode("photo.jpg")  # type: ignore[arg-type]
    with pytest.raises(HuvrError, match=r"images of type str: expected a tensor"):
        model.reconstruct("photo.jpg")  # type: ignore[arg-type]
    tokens = model.encode(torch.rand(1, 3, 16, 24))
    with pytest.raises(HuvrError, match="tokens of 48 numbers: expand takes TinToks, of 6"):
        model.expand(tokens)
    with pytest.raises(HuvrError, match="tokens of 6 numbers: compress takes standard tokens, of 48"):
        model.compress(model.compress(tokens))
    with pytest.raises(HuvrError, match="tokens of 6 numbers: render takes decoder tokens, of 40"):
        model.render(model.compress(tokens))
    with pytest.raises(HuvrError, match=r"compress takes standard tokens, as huvr\.model\.Tokens, not Tensor"):
        model.compress(tokens.patches)  # type: ignore[arg-type]
    with pytest.raises(HuvrError, match="tokens of 48 numbers: refine takes TinToks, of 6"):
        model.refine(tokens, torch.rand(1, 3, 16, 24), 1)
    with pytest.raises(HuvrError, match="preset tiny: no field foo; choose among image_size, patch"):
        HUVR.preset("tiny", foo=3)


@pytest.mark.parametrize(("factor", "shift"), [(255, 0), (1 / 0.22, -0.45)])
def test_images_out_of_range_are_told(model: HUVR, factor: float, shift: float, recwarn: pytest.WarningsRecorder) -> None:
    """Bytes as floats, and images that are normalised; the overshoots of an enlarged photograph are none."""
    images = torch.rand(2, 3, 16, 24)
    model.encode(1.2 * images - 0.1)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"images from \S+ to \S+: expected numbers in \[0, 1\], not normalised"):
        model.encode((images + shift) * factor)


def test_images_without_values_are_encoded(model: HUVR) -> None:
    images = torch.rand(2, 3, 16, 24)
    together = torch.func.vmap(lambda image: model.encode(image[None]).cls[0])(images)
    torch.testing.assert_close(together, model.encode(images).cls)
    assert copy.deepcopy(model).to("meta").encode(images.to("meta")).cls.shape == (2, 48)


def test_a_scale_may_be_a_float(model: HUVR, decoded: Tokens) -> None:
    assert torch.equal(model.render(decoded, scale=2.0), model.render(decoded, scale=2))  # type: ignore[arg-type]


def test_tokens_compare(model: HUVR, decoded: Tokens) -> None:
    assert decoded == decoded
    assert decoded != model.encode(torch.rand(1, 3, 16, 16))


def test_bytes_are_refused(model: HUVR) -> None:
    with pytest.raises(HuvrError, match=r"images of torch\.uint8: expected floating-point numbers in \[0, 1\]"):
        model.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    tintoks = model.compress(model.encode(torch.rand(1, 3, 16, 16)))
    with pytest.raises(HuvrError, match=r"images of torch\.uint8"):
        model.refine(tintoks, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_takes_images_as_they_are(model: HUVR, dtype: torch.dtype) -> None:
    images = torch.rand(1, 3, 16, 24)
    painted = copy.deepcopy(model).to(dtype).reconstruct(images)
    assert painted.dtype == dtype
    torch.testing.assert_close(painted.float(), model.reconstruct(images), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth 0: expected 1 or more"),
        ({"tintok_dim": -3}, "tintok_dim -3: expected 1 or more"),
        ({"tintok_dim": "8"}, "tintok_dim '8': expected 1 or more"),
        ({"registers": -1}, "registers -1: expected 0 or more"),
        ({"inr_widths": (16, 0, 16)}, "expected above 0"),
        ({"inr_max_frequency": 0.0}, "expected above 0"),
        ({"width": 50, "heads": 4}, "width 50, heads 4: each head needs the same width, a multiple of 4"),
        ({"width": 52, "heads": 2}, "width 52, heads 2: each head needs the same width, a multiple of 4"),
        ({"decoder_attention": True, "decoder_heads": 7}, "decoder_width 40 is not a multiple of decoder_heads 7"),
    ],
)
def test_shapes_that_are_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize("change", [{"modulation": "fre"}, {"positions": "absolute"}])
def test_choices_that_are_none(change: dict[str, str]) -> None:
    with pytest.raises(HuvrError, match=f"{next(iter(change))} '{next(iter(change.values()))}': choose one of"):
        replace(TINY, **change)


def test_timm_encoder_by_name() -> None:
    torch.manual_seed(0)
    model = HUVR.preset("tiny", encoder="vit_tiny_patch16_224", image_size=32, tintok_dim=8).eval()
    assert model.patch == 16
    assert model.compress(model.encode(torch.rand(1, 3, 30, 50))).grid == (2, 4)
    assert model.reconstruct(torch.rand(1, 3, 30, 50)).shape == (1, 3, 30, 50)
