"""The diffusion transformer (DiT, arXiv 2212.09748) on a grid of tokens, each token a patch of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from timm.layers import AttentionRope, GELUTanh, Mlp, RmsNorm, RotaryEmbeddingCat, SwiGLUPacked, build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError

Norm = Literal["layernorm", "rmsnorm"]
MLP = Literal["gelu", "swiglu"]
Positions = Literal["sincos", "rope"]
SINUSOIDS = 256  # numbers that stand for a time


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a DiT; the defaults are DiT-B.

    Attributes:
        depth, width, heads: 12, 384, 6 is DiT-S; 12, 768, 12 is B; 24, 1024, 16 is L; 28, 1152, 16 is XL.
        norm: of the blocks, always without weights of its own.
        mlp: "swiglu" is made as large as "gelu", which widens four times.
        positions: "sincos" adds a fixed table to the patch tokens, "rope" turns their queries and keys.
    """

    depth: int = 12
    width: int = 768
    heads: int = 12
    norm: Norm = "layernorm"
    mlp: MLP = "gelu"
    positions: Positions = "sincos"

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.heads) < 1 or self.width % self.heads or self.width // self.heads % 4:
            raise HuvrError(
                f"depth {self.depth}, width {self.width}, heads {self.heads}: expected 1 or more, each head a multiple of 4 wide"
            )
        for name, allowed in (("norm", Norm), ("mlp", MLP), ("positions", Positions)):
            if getattr(self, name) not in get_args(allowed):
                raise HuvrError(f"{name} {getattr(self, name)!r}: choose one of {', '.join(get_args(allowed))}")


class DiT(nn.Module):
    """Noisy latents, their times and labels, to whatever the objective wants to know of them.

    A global token, where there is one, comes first and has projections in and out of its own. It needs no position: the
    bias of its projection tells it apart.

    Args:
        config: shape of the network.
        grid: (h, w) of the patch tokens.
        dim: numbers per token, d.
        classes: how many; 0 makes the network unconditional.
        outputs: numbers out per number in; 2 where a variance is learned too.
        global_token: whether a global token is generated with the patches.
    """

    def __init__(
        self, config: DiTConfig, grid: tuple[int, int], dim: int, classes: int = 0, outputs: int = 1, global_token: bool = True
    ) -> None:
        super().__init__()
        width = config.width
        self.prefix, self.classes = int(global_token), classes
        self.embed = nn.Linear(dim, width)
        self.embed_global = nn.Linear(dim, width) if global_token else None
        self.embed_time = nn.Sequential(nn.Linear(SINUSOIDS, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_label = nn.Embedding(classes + 1, width) if classes else None  # the last one is that of no label
        turned = config.positions == "rope"
        self.rope = RotaryEmbeddingCat(width // config.heads, in_pixels=False, feat_shape=list(grid)) if turned else None
        table = torch.zeros(1, width) if turned else build_sincos2d_pos_embed(list(grid), width)
        self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(Block(config, self.prefix) for _ in range(config.depth))
        self.norm = make_norm(config)
        self.modulation = Modulation(width, 2)
        self.out = nn.Linear(width, outputs * dim)
        self.out_global = nn.Linear(width, outputs * dim) if global_token else None
        self.apply(initialise)
        for weights in (each for each in self.embed_time.parameters() if each.ndim == 2):
            nn.init.normal_(weights, std=0.02)
        for head in filter(None, (self.out, self.out_global)):
            nn.init.zeros_(head.weight)

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """The prediction of the objective.

        Args:
            latents: ``(B, N, d)``, the global token first where there is one, then the patches row by row.
            times: ``(B,)`` from 0, which is data, to 1000, which is noise.
            labels: int64 ``(B,)``, the number of classes standing for none; None where there are no classes.

        Returns:
            ``(B, N, outputs * d)``.
        """
        condition = self.embed_time(sinusoids(times).to(latents.dtype))
        if self.embed_label is not None:
            condition = condition + self.embed_label(labels)
        x = self.embed(latents[:, self.prefix :]) + self.positions
        if self.embed_global is not None:
            x = torch.cat([self.embed_global(latents[:, :1]), x], 1)
        rope = None if self.rope is None else self.rope.get_embed()
        for block in self.blocks:
            x = block(x, condition, rope)
        shift, scale = self.modulation(condition)
        x = modulate(self.norm(x), shift, scale)
        if self.out_global is None:
            return self.out(x)
        return torch.cat([self.out_global(x[:, :1]), self.out(x[:, 1:])], 1)


class Block(nn.Module):
    """A transformer block whose norms and branches the condition scales and shifts, the identity at first (adaLN-Zero)."""

    def __init__(self, config: DiTConfig, prefix: int) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attention = AttentionRope(width, config.heads, num_prefix_tokens=prefix)  # without rope, plain attention
        if config.mlp == "gelu":
            self.mlp: nn.Module = Mlp(width, 4 * width, act_layer=GELUTanh)
        else:
            self.mlp = SwiGLUPacked(width, 2 * (8 * width // 3))
        self.modulation = Modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor, rope: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class Modulation(nn.Module):
    """The condition ``(B, D)`` to ``pieces`` shifts, scales and gates ``(B, 1, D)``, all zero at first."""

    def __init__(self, width: int, pieces: int) -> None:
        super().__init__()
        self.pieces, self.linear = pieces, nn.Linear(width, pieces * width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(condition))[:, None].chunk(self.pieces, -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def make_norm(config: DiTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RmsNorm(config.width, eps=1e-6, affine=False)
    return nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)


def initialise(module: nn.Module) -> None:
    """DiT's: Xavier for what is linear, small normal numbers for the labels, zero for what modulates."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, Modulation):  # visited after the linear map in it
        nn.init.zeros_(module.linear.weight)


def sinusoids(times: Tensor) -> Tensor:
    """Times ``(B,)`` to ``(B, 256)``: cosines and sines of 128 frequencies from 1 down to 1/10000."""
    half = SINUSOIDS // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=times.device))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
