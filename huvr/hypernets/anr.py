"""ANR (arXiv 2407.15355): an INR that attends to tokens of the image."""

from __future__ import annotations

import itertools

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError, require
from huvr.hypernets.interface import HyperINR, INRParameters
from huvr.hypernets.tokenizer import Tokenizer, TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig, blocks, self_attention
from huvr.losses import pixel_loss
from huvr.model.inr import encode_positions
from huvr.model.tokens import Tokens


class CrossAttention(nn.Module):
    """Queries ``(B, N, width)`` look at ``(B, M, width)``.

    Args:
        width, heads, head_width: as of a transformer.
        threshold: taken from each attention weight; what is left above 0 is scaled to sum to one again.
    """

    def __init__(self, width: int, heads: int, head_width: int, threshold: float = 0.0) -> None:
        super().__init__()
        self.heads, self.threshold = heads, threshold
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * head_width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        parts = (self.to_q(x), self.to_k(context), self.to_v(context))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.threshold:
            share = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
            share = F.relu(share - self.threshold)
            found = (share / share.sum(-1, keepdim=True)) @ v
        else:
            found = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, attention to the encoder's output, MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(3))
        self.attention = self_attention(config)
        self.cross = CrossAttention(config.width, config.heads, config.head_width)
        self.mlp = Mlp(config.width, config.hidden)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        x = x + self.cross(self.norms[1](x), context)
        return x + self.mlp(self.norms[2](x))


class ANR(HyperINR):
    """Instance tokens from an encoder and a decoder; coordinates attend to them, and an MLP paints.

    Sizes and details of the released code (ANR, hyper_network.py and hypo_anr.py); images are in [-1, 1] inside.

    Args:
        tokenizer: shape.
        transformer: of the encoder and of the decoder alike.
        instance_tokens: tokens per image, which are its parameters.
        mlp_depth: linear layers after the attention; they are as wide as the transformer.
        max_frequency: highest frequency of the positional encoding, which fills the width of the transformer.
        threshold: of the attention of coordinates, see :class:`CrossAttention`.
    """

    def __init__(
        self,
        tokenizer: TokenizerConfig = TokenizerConfig(128, 10),  # noqa: B008 (frozen)
        transformer: TransformerConfig = TransformerConfig(512, heads=6),  # noqa: B008
        instance_tokens: int = 256,
        mlp_depth: int = 5,
        max_frequency: float = 1024.0,
        threshold: float = 0.0015,
    ) -> None:
        require({
            f"width {transformer.width}: expected a multiple of 4, for the positional encoding": transformer.width % 4 == 0,
            f"instance_tokens {instance_tokens}, mlp_depth {mlp_depth}: expected 1 or more": min(instance_tokens, mlp_depth) >= 1,
            f"max_frequency {max_frequency}: expected a positive number": max_frequency > 0,
        })  # fmt: skip
        if not 0 <= threshold < 1 / instance_tokens:  # else equal attention to all tokens would leave nothing
            raise HuvrError(f"threshold {threshold}: expected 0 to below 1/{instance_tokens}, one over the instance tokens")
        super().__init__(
            tokenizer=tokenizer, transformer=transformer, instance_tokens=instance_tokens, mlp_depth=mlp_depth,
            max_frequency=max_frequency, threshold=threshold,
        )  # fmt: skip
        width = transformer.width
        self.least, self.num_features = tokenizer.patch, width
        self.frequencies, self.max_frequency = width // 4, max_frequency
        self.tokenizer = Tokenizer(tokenizer, width)
        self.encoder = blocks(transformer)
        self.weight_tokens = nn.Parameter(torch.randn(instance_tokens, width))
        self.decoder = nn.ModuleList(DecoderLayer(transformer) for _ in range(transformer.depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.scale = nn.Parameter(torch.ones(instance_tokens, width))
        self.shift = nn.Parameter(torch.randn(instance_tokens, width))
        self.attention = CrossAttention(width, transformer.heads, transformer.head_width, threshold)
        sizes = [width] * mlp_depth + [3]
        self.mlp = nn.ModuleList(nn.Linear(*shape) for shape in itertools.pairwise(sizes))

    def encode(self, images: Tensor, mask: Tensor | None = None) -> INRParameters:
        size = self.check(images)
        context, x = self._encoded(images)[0], self.weight_tokens.expand(len(images), -1, -1)
        for layer in self.decoder:
            x = layer(x, context)
        return INRParameters((self.scale * self.head(x) + self.shift,), size)

    def tokens(self, images: Tensor) -> Tokens:
        """What the encoder gives; its mean stands for the global one."""
        self.check(images)
        patches, grid = self._encoded(images)
        return Tokens(patches.mean(1), patches, grid)

    def _encoded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = self.tokenizer(2 * images - 1)
        return self.encoder(tokens), grid

    def _paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        (tokens,) = parameters.tensors
        x = encode_positions(coordinates, self.frequencies, self.max_frequency).to(self.shift.dtype)
        x = self.attention(x.expand(len(tokens), -1, -1), tokens)
        for layer in self.mlp[:-1]:
            x = F.relu_(layer(x))
        return self.mlp[-1](x) / 2 + 0.5

    def loss(self, painted: Tensor, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return pixel_loss(painted, images)
