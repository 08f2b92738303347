"""One tiny network of each kind, and pictures for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.hypernets.anr import ANR
from huvr.hypernets.coordinate_mlp import INRConfig
from huvr.hypernets.ginr import GINR
from huvr.hypernets.interface import HyperINR
from huvr.hypernets.mae import MAE
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.tokenizer import TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig
from huvr.hypernets.transinr import TransINR
from huvr.model import HUVRConfig

HUVR_SHAPE = HUVRConfig(
    image_size=16, patch=8, width=48, depth=1, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_heads=3,
    decoder_hidden=96, inr_widths=(16, 16, 16), inr_frequencies=4, inr_max_frequency=8.0,
)  # fmt: skip
TOKENIZER = TokenizerConfig(16, 5, 1)  # (16 + 2) // 5 = 3 patches each way
TRANSFORMER = TransformerConfig(32, 2, 2, 8, 48)
INR = INRConfig(4, 16, 4, 8.0)


def tiny(name: str) -> HyperINR:
    """A network for images of 16 pixels; MAE has patches of 4."""
    torch.manual_seed(0)
    if name == "TransINR":
        return TransINR(TOKENIZER, TRANSFORMER, INR, groups=8)
    if name == "GINR":
        return GINR(TOKENIZER, TRANSFORMER, INR, rank=12)
    if name == "ANR":
        return ANR(TOKENIZER, TRANSFORMER, instance_tokens=6, mlp_depth=3, max_frequency=8.0, threshold=0.1)
    if name == "MAE":
        return MAE(4, 32, 2, 2, 16, 1, 2)
    return PatchwiseHUVR(HUVR_SHAPE)


CONTINUOUS = ("TransINR", "GINR", "ANR")
PAINTERS = (*CONTINUOUS, "PatchwiseHUVR")


def pictures(count: int = 2, side: int = 16) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (side, side), mode="bilinear")
