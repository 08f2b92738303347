"""Stored tokens against numpy's own rounding, and the bytes counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from huvr.errors import HuvrError
from huvr.model.tokens import Tokens
from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.storage import as_stored, size_stored

RANDOM = np.random.default_rng(0).normal(0, 3, (5, 7)).astype(np.float32)


def test_fp16_is_that_of_numpy() -> None:
    assert np.array_equal(as_stored(torch.from_numpy(RANDOM), "fp16").numpy(), RANDOM.astype(np.float16).astype(np.float32))


def test_int8_is_what_bytes_and_a_half_bring_back() -> None:
    scale = np.abs(RANDOM).max(1, keepdims=True).astype(np.float16)
    numbers = np.clip(np.rint(RANDOM / scale.astype(np.float32) * 127), -127, 127).astype(np.int8)
    back = numbers.astype(np.float32) * (scale.astype(np.float32) / 127)
    np.testing.assert_allclose(as_stored(torch.from_numpy(RANDOM), "int8").numpy(), back, rtol=1e-6)
    assert numbers.nbytes + scale.nbytes == 5 * size_stored(7, "int8")
    assert RANDOM.astype(np.float16).nbytes == 5 * size_stored(7, "fp16")


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_zeros_and_what_a_half_cannot_hold_stay_finite(kind: str) -> None:
    tokens = torch.tensor([[0.0, 0.0], [1e6, -1e6]])
    assert as_stored(tokens, kind).tolist() == [[0, 0], [65504, -65504]]  # type: ignore[arg-type]


def test_an_encoder_hands_out_what_was_stored(encoder: str) -> None:
    image = torch.rand(1, 3, 32, 32)
    plain, stored = (FrozenEncoder(EncoderConfig(encoder, "tintok", stored=kind)) for kind in ("fp16", "int8"))
    assert torch.equal(stored(image).patches, as_stored(plain.look(image).patches, "int8"))
    tokens: Tokens = stored(image)
    assert stored.stored_bytes(tokens) == 17 * (8 + 2)
    assert plain.stored_bytes(tokens) == 17 * 8 * 2


def test_bf16_is_close_to_fp32_but_not_the_same_features(encoder: str) -> None:
    image = torch.rand(1, 3, 32, 32)
    exact, rough = (FrozenEncoder(EncoderConfig(encoder, precision=kind)) for kind in ("fp32", "bf16"))
    torch.testing.assert_close(rough.look(image).cls, exact.look(image).cls, atol=0.1, rtol=0.1)
    assert not torch.equal(rough.look(image).cls, exact.look(image).cls)
    assert rough.fingerprint != exact.fingerprint


@pytest.mark.parametrize(("name", "value"), [("stored", "int4"), ("precision", "fp8")])
def test_what_is_not_offered(name: str, value: str) -> None:
    with pytest.raises(HuvrError, match=f"{name} '{value}': choose one of"):
        EncoderConfig("somewhere", **{name: value})  # type: ignore[arg-type]
