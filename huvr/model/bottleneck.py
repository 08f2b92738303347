"""TinToks: standard tokens squeezed to a few numbers each and back (HUVR, section on TinToks)."""

from __future__ import annotations

from torch import nn

from huvr.model.tokens import Tokens


class Bottleneck(nn.Module):
    """``down``: D → d_t and ``up``: d_t → decoder width, one pair of maps for global and patch tokens.

    LayerNorm precedes the projection down. The released network puts another one before the projection
    up (``norm_up``); it removes two of the d_t numbers (mean and size), so the default goes without.
    Where both sides of a projection have the same width, it is the identity, as in the released code.
    """

    def __init__(self, dim: int, tintok_dim: int, decoder_dim: int, norm_up: bool = False) -> None:
        super().__init__()
        self.down = nn.Identity() if dim == tintok_dim else nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, tintok_dim))
        norm = nn.LayerNorm(tintok_dim) if norm_up else nn.Identity()
        self.up = nn.Identity() if tintok_dim == decoder_dim else nn.Sequential(norm, nn.Linear(tintok_dim, decoder_dim))

    def compress(self, tokens: Tokens) -> Tokens:
        """Standard tokens to TinToks."""
        return tokens.apply(self.down)

    def expand(self, tintoks: Tokens) -> Tokens:
        """TinToks to the decoder's input."""
        return tintoks.apply(self.up)
