"""GINR with instance pattern composers, IPC (Kim et al., arXiv 2211.13223): one layer of the INR is each image's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.hypernets.coordinate_mlp import INRConfig, check_layers
from huvr.hypernets.tokenizer import TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig
from huvr.hypernets.weight_tokens import WeightTokenINR


class GINR(WeightTokenINR):
    """The weight of a modulated layer is V U, then with unit columns: V from the weight tokens, U shared by all images.

    All other layers are shared (ginr-ipc, low_rank_modulated_transinr.py).

    Args:
        tokenizer, transformer, inr: shapes.
        rank: weight tokens of a modulated layer.
        modulated: these layers, counted from 0.
    """

    def __init__(
        self,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008 (frozen)
        transformer: TransformerConfig = TransformerConfig(qkv_bias=True, dropout=0.1),  # noqa: B008
        inr: INRConfig = INRConfig(max_frequency=128.0),  # noqa: B008
        rank: int = 256,
        modulated: tuple[int, ...] = (1,),
    ) -> None:
        layers = check_layers(modulated, inr)
        if rank < 1:
            raise HuvrError(f"rank {rank}: expected 1 or more")
        super().__init__(tokenizer, transformer, inr, dict.fromkeys(layers, rank), without=layers, rank=rank, modulated=modulated)
        for bias in self.mlp.biases:
            nn.init.zeros_(bias)
        shapes = {layer: inr.shapes[layer] for layer in layers}
        self.shared = nn.ParameterDict({
            str(layer): nn.Parameter(torch.randn(rank, fan_out) / math.sqrt(rank * fan_in))
            for layer, (fan_in, fan_out) in shapes.items()
        })  # fmt: skip

    def weight(self, layer: int, factor: Tensor) -> Tensor:
        return F.normalize(factor @ self.shared[str(layer)], dim=1)
