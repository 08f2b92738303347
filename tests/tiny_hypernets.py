"""One tiny network of each kind, as a training would leave it, and pictures for them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.hypernets.anr import ANR
from huvr.hypernets.coordinate_mlp import INRConfig
from huvr.hypernets.ginr import GINR
from huvr.hypernets.interface import HyperINR
from huvr.hypernets.lift import LIFT, LIFTConfig
from huvr.hypernets.lift_images import LIFTImages
from huvr.hypernets.lift_module import SIZE_KEY
from huvr.hypernets.mae import MAE
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.tokenizer import TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig
from huvr.hypernets.transinr import TransINR
from huvr.hypernets.weights import described
from huvr.model import HUVRConfig
from huvr.weights import HYPERNET_KEY, LIFT_KEY

HUVR_SHAPE = HUVRConfig(
    image_size=16, patch=8, width=48, depth=1, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_heads=3,
    decoder_hidden=96, inr_widths=(16, 16, 16), inr_frequencies=4, inr_max_frequency=8.0,
)  # fmt: skip
TOKENIZER = TokenizerConfig(16, 5, 1)  # (16 + 2) // 5 = 3 patches each way
TRANSFORMER = TransformerConfig(32, 2, 2, 8, 48)
INR = INRConfig(4, 16, 4, 8.0)
LIFT_SHAPE = LIFTConfig(cells=2, latents=((1, 8), (2, 6)), width=16, depth=2, inner_steps=2, inner_lr=10.0)


def tiny(name: str) -> HyperINR:
    """A network for images of 16 pixels; MAE has patches of 4, LIFT cells of 8."""
    torch.manual_seed(0)
    if name == "TransINR":
        return TransINR(TOKENIZER, TRANSFORMER, INR, groups=8)
    if name == "GINR":
        return GINR(TOKENIZER, TRANSFORMER, INR, rank=12)
    if name == "ANR":
        return ANR(TOKENIZER, TRANSFORMER, instance_tokens=6, mlp_depth=3, max_frequency=8.0, threshold=0.1)
    if name == "MAE":
        return MAE(4, 32, 2, 2, 16, 1, 2)
    if name == "LIFT":
        return LIFTImages(LIFT(LIFT_SHAPE), (16, 16))
    return PatchwiseHUVR(HUVR_SHAPE)


def run_of(net: HyperINR, folder: Path) -> str:
    """A run folder with the checkpoint of a network, as ``huvr fit`` leaves it."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    if isinstance(net, LIFTImages):
        about, trained = {LIFT_KEY: asdict(net.lift.config), SIZE_KEY: [*net.size]}, net.lift
    else:
        about, trained = {HYPERNET_KEY: described(net)}, net
    torch.save(about | {"state_dict": {f"net.{key}": tensor for key, tensor in trained.state_dict().items()}}, checkpoint)
    return str(folder)


CONTINUOUS = ("TransINR", "GINR", "ANR")
PAINTERS = (*CONTINUOUS, "PatchwiseHUVR")


def pictures(count: int = 2, side: int = 16) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (side, side), mode="bilinear")
