"""The plain pre-norm transformer of TransINR, GINR and ANR, from timm's parts."""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

from huvr.errors import HuvrError


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer.

    Attributes:
        width: numbers per token.
        depth: layers.
        heads, head_width: of the attention.
        hidden: of the MLP (GELU).
        qkv_bias: whether queries, keys and values have a bias; GINR's have.
        dropout: on the output of attention and of the MLP; GINR's is 0.1.
    """

    width: int = 768
    depth: int = 6
    heads: int = 12
    head_width: int = 64
    hidden: int = 3072
    qkv_bias: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.head_width, self.hidden) < 1 or not 0 <= self.dropout < 1:
            raise HuvrError(f"{self}: expected sizes of 1 or more, and a dropout from 0 to below 1")


def self_attention(config: TransformerConfig) -> Attention:
    c = config
    return Attention(c.width, c.heads, attn_head_dim=c.head_width, qkv_bias=c.qkv_bias, proj_drop=c.dropout)


def blocks(config: TransformerConfig) -> nn.Sequential:
    """Layers ``x += Attention(LN x); x += MLP(LN x)`` over ``(B, N, width)``, no final norm (trans-inr, transformer.py)."""
    # timm truncates width * ratio, which rounding may have left just below hidden
    ratio = (config.hidden + 0.5) / config.width
    layers = [Block(config.width, 1, ratio, proj_drop=config.dropout, norm_layer=nn.LayerNorm) for _ in range(config.depth)]
    for layer in layers:
        layer.attn = self_attention(config)  # a Block knows no head_width
        layer.mlp.drop1 = nn.Identity()  # timm also drops hidden units, which GINR does not
    return nn.Sequential(*layers)
