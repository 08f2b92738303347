"""The token decoder between TinToks and the patch INR (HUVR, section on the decoder)."""

from __future__ import annotations

from collections.abc import Collection

from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from huvr.model.tokens import Tokens


class TokenwiseBlock(nn.Module):
    """A decoder layer without attention, ``x ← scale * x + MLP(LN x)``.

    In the released layer the attention branch is an identity that is still added to the stream, so
    the input counts twice (``doubling``); ours counts it once.
    """

    def __init__(self, dim: int, hidden_dim: int, doubling: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim)
        self.scale = 2.0 if doubling else 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * x
        return x + self.mlp(self.norm(x))


class TokenDecoder(nn.Module):
    """``depth`` pre-norm layers over ``(B, 1 + N, dim)``, without position embedding or final norm.

    Positions are known from the encoder. Without attention every token is decoded alone: cheaper, and
    better TinToks for recognition, at some cost in reconstruction (HUVR, ablations).
    """

    def __init__(self, dim: int, depth: int, heads: int, hidden_dim: int, attention: bool, doubling: bool = False) -> None:
        super().__init__()

        def layer() -> nn.Module:
            if not attention:
                return TokenwiseBlock(dim, hidden_dim, doubling)
            # timm truncates dim * ratio, which rounding may have left just below hidden_dim
            return Block(dim, heads, (hidden_dim + 0.5) / dim, qkv_bias=False, norm_layer=nn.LayerNorm)

        self.layers = nn.ModuleList(layer() for _ in range(depth))

    def forward(self, tokens: Tokens, taps: Collection[int] = ()) -> tuple[Tokens, dict[int, Tokens]]:
        """Decode; ``taps`` names layers (1-based) whose output is handed out too, for distillation."""
        x, tapped = tokens.sequence, {}
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number in taps:
                tapped[number] = Tokens.from_sequence(x, tokens.grid)
        return Tokens.from_sequence(x, tokens.grid), tapped
