"""Every stage of two small released checkpoints against the outputs of the released code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import huvr
from huvr.model import HUVR

RELEASED = Path(__file__).parent / "fixtures" / "released"
TOKENWISE, ATTENTIVE = "tiny_mlp_decoder", "tiny_attention_decoder_registers"
SOURCES = [
    TOKENWISE,
    f"{TOKENWISE}/model.safetensors",
    f"{TOKENWISE}/train_checkpoint.pth",
    ATTENTIVE,
    f"{ATTENTIVE}/model.safetensors",
]


def stages(model: HUVR, images: Tensor) -> dict[str, Tensor]:
    """Our outputs, by their names in the released code; ``images`` are in [0, 1]."""
    tokens = model.encode(images)
    tintoks = model.compress(tokens)
    decoded, tapped = model.decoder(model.bottleneck.expand(tintoks), taps=(1,))
    assert tokens.grid == tintoks.grid == decoded.grid == (8, 8)
    return {
        "global_token": tokens.cls,
        "patch_tokens_enc": tokens.patches,
        "global_token_trans": tintoks.cls,
        "patch_tokens_trans": tintoks.patches,
        "global_token_dec": decoded.cls,
        "patch_tokens_dec": decoded.patches,
        "distill_EC": model.distill["encoder_cls"](tokens.cls)[:, None],
        "distill_EP": model.distill["encoder_patches"](tokens.patches),
        # recorded with the tap after the first layer, as in the released recipe
        "distill_DC": model.distill["decoder_cls"](tapped[1].cls)[:, None],
        "distill_DP": model.distill["decoder_patches"](tapped[1].patches),
        "reconstruction_minus1_1": model.render(model.expand(tintoks)) * 2 - 1,
    }


@pytest.mark.parametrize("source", SOURCES)
@torch.no_grad()
def test_every_stage_is_that_of_the_released_code(source: str) -> None:
    expected = load_file(RELEASED / source.partition("/")[0] / "expected.safetensors")
    images = expected.pop("images_minus1_1") / 2 + 0.5  # the input
    model = huvr.load(RELEASED / source)
    found = stages(model, images)
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        assert found[name].shape == reference.shape, name
        assert (found[name] - reference).abs().max() <= 1e-5 * reference.abs().max(), name
    assert torch.equal(model.reconstruct(images) * 2 - 1, found["reconstruction_minus1_1"])
