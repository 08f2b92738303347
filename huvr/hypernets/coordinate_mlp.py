"""The INR of TransINR and GINR: a coordinate MLP, some of whose layers have weights of each image's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.model.inr import encode_positions


@dataclass(frozen=True)
class INRConfig:
    """The shape of a coordinate MLP.

    Attributes:
        depth: linear layers.
        width: outputs of each but the last, which has three.
        frequencies: frequencies of the positional encoding, per coordinate.
        max_frequency: the highest of them, in units of π per half image.
    """

    depth: int = 5
    width: int = 256
    frequencies: int = 64
    max_frequency: float = 1024.0

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.frequencies) < 1 or self.max_frequency <= 0:
            raise HuvrError(f"{self}: expected sizes of 1 or more, and a positive frequency")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer."""
        return list(itertools.pairwise([4 * self.frequencies, *[self.width] * (self.depth - 1), 3]))


def check_layers(modulated: Collection[int], config: INRConfig) -> tuple[int, ...]:
    """Numbers of layers in order.

    Raises:
        HuvrError: where there are none, or no such layers.
    """
    if not modulated or not {*modulated} <= {*range(config.depth)}:
        raise HuvrError(f"modulated {list(modulated)}: name one or more of the layers 0 to {config.depth - 1}")
    return tuple(sorted({*modulated}))


class CoordinateMLP(nn.Module):
    """ReLU layers over Fourier features; every column of every weight has length one (TransINR, GINR).

    Args:
        config: its shape.
        without: layers that have no base weight, only a bias.
    """

    def __init__(self, config: INRConfig, without: Collection[int] = ()) -> None:
        super().__init__()
        self.frequencies, self.max_frequency = config.frequencies, config.max_frequency
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(config.shapes):
            bound = 1 / math.sqrt(fan_in)  # Kaiming's of an nn.Linear
            if layer not in without:
                self.weights[str(layer)] = nn.Parameter(torch.empty(fan_in, fan_out).uniform_(-bound, bound))
            self.biases.append(nn.Parameter(torch.empty(fan_out).uniform_(-bound, bound)))

    def forward(self, coordinates: Tensor, own: Mapping[int, Tensor]) -> Tensor:
        """RGB at points.

        What all images share, the points and the layers up to the first with weights of its own, is computed once.

        Args:
            coordinates: ``(B, N, 2)`` or ``(1, N, 2)``.
            own: weights ``(B, in, out)`` with unit columns of layers by number, at least one.

        Returns:
            ``(B, N, 3)``.
        """
        x = encode_positions(coordinates, self.frequencies, self.max_frequency).to(self.biases[0].dtype)
        for layer, bias in enumerate(self.biases):
            if layer in own:
                x = torch.baddbmm(bias, x.expand(len(own[layer]), -1, -1), own[layer])
            else:
                x = F.linear(x, F.normalize(self.weights[str(layer)], dim=0).T, bias)
            x = F.relu_(x) if layer < len(self.biases) - 1 else x
        return x + 0.5
