"""What TransINR and GINR share: learned weight tokens beside those of the image, each to become a column of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from huvr.hypernets.coordinate_mlp import CoordinateMLP, INRConfig
from huvr.hypernets.interface import HyperINR, INRParameters
from huvr.hypernets.tokenizer import Tokenizer, TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig, blocks
from huvr.model.tokens import Tokens


class WeightTokenINR(HyperINR):
    """Data tokens and weight tokens pass one transformer; heads make columns of numbers of the weight tokens.

    The parameters of an image are, for each modulated layer, ``(B, columns, in)``, a vector of each weight token. A subclass
    makes weights of them in ``weight``.

    Args:
        tokenizer, transformer, inr: shapes.
        columns: how many weight tokens each modulated layer has, by its number.
        without: layers whose base weight is not used.
        config: the arguments of the subclass.
    """

    def __init__(
        self,
        tokenizer: TokenizerConfig,
        transformer: TransformerConfig,
        inr: INRConfig,
        columns: Mapping[int, int],
        without: Collection[int] = (),
        **config: object,
    ) -> None:
        super().__init__(tokenizer=tokenizer, transformer=transformer, inr=inr, **config)
        self.least, self.num_features = tokenizer.patch, transformer.width
        self.columns = dict(columns)
        self.tokenizer = Tokenizer(tokenizer, transformer.width)
        self.weight_tokens = nn.Parameter(torch.randn(sum(columns.values()), transformer.width))
        self.blocks = blocks(transformer)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(transformer.width), nn.Linear(transformer.width, inr.shapes[layer][0]))
            for layer in columns
        )
        self.mlp = CoordinateMLP(inr, without)

    def weight(self, layer: int, factor: Tensor) -> Tensor:
        """Weights ``(B, in, out)`` with unit columns of a layer, from ``(B, in, columns)``."""
        raise NotImplementedError

    def encode(self, images: Tensor, mask: Tensor | None = None) -> INRParameters:
        size = self.check(images)
        out = self._transformed(images)[0][:, -len(self.weight_tokens) :]
        parts = out.split([*self.columns.values()], dim=1)
        return INRParameters(tuple(head(part) for head, part in zip(self.heads, parts, strict=True)), size)

    def tokens(self, images: Tensor) -> Tokens:
        """The data tokens as they leave the transformer; their mean stands for the global one."""
        self.check(images)
        out, grid = self._transformed(images)
        patches = out[:, : -len(self.weight_tokens)]
        return Tokens(patches.mean(1), patches, grid)

    def _transformed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        data, grid = self.tokenizer(images)
        return self.blocks(torch.cat([data, self.weight_tokens.expand(len(data), -1, -1)], dim=1)), grid

    def _paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        factors = zip(self.columns, parameters.tensors, strict=True)
        return self.mlp(coordinates, {layer: self.weight(layer, factor.transpose(1, 2)) for layer, factor in factors})
