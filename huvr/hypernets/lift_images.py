"""LIFT on images, by the interface of all hyper-networks here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.hypernets import interface
from huvr.hypernets.interface import HyperINR, INRParameters
from huvr.hypernets.lift import LIFT
from huvr.hypernets.lift_meta import find_latents, sides_of
from huvr.model.tokens import Tokens


class LIFTImages(HyperINR):
    """A trained LIFT network for images of three colours; its parameters of an image are the latents of all levels.

    Args:
        lift: the network.
        size: (H, W) in pixels of the images that it learned; empty where not known.

    Raises:
        HuvrError: for a network of volumes.
    """

    def __init__(self, lift: LIFT, size: tuple[int, ...] = ()) -> None:
        if (lift.config.dims, lift.config.channels) != (2, 3):
            raise HuvrError(f"LIFT of {lift.config.dims} dimensions and {lift.config.channels} channels paints no images")
        super().__init__(lift=lift.config)
        self.size = size
        self.lift, self.least, self.num_features = lift, lift.config.places, lift.config.latents[-1][1]

    def encode(self, images: Tensor, mask: Tensor | None = None) -> INRParameters:
        """The latents, in whose search the pixels have no say that a mask blackened."""
        size = self.check(images)
        return INRParameters(find_latents(self.lift, images, mask), size)

    def tokens(self, images: Tensor) -> Tokens:
        return self.lift.tokens(find_latents(self.lift, images))

    def check(self, images: Tensor) -> tuple[int, int]:
        height, width = sides_of(self.lift, images)
        return height, width

    def paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        # Each part takes points of the whole image: in a part of neighbours, all cells would be filled up to a few full ones.
        count = coordinates.shape[1]
        parts = max(1, math.ceil(count / interface.POINTS))
        spread = (torch.arange(count, device=coordinates.device) % parts).argsort(stable=True)
        return super().paint(parameters, coordinates[:, spread])[:, spread.argsort()]

    def _paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        fused = self.lift.fuse(parameters.tensors)
        if len(coordinates) == 1:
            return self.lift.paint(fused, self.lift.locate(coordinates[0])).transpose(1, 2)
        each = [self.lift.paint(one[None], self.lift.locate(points)) for one, points in zip(fused, coordinates, strict=True)]
        return torch.cat(each).transpose(1, 2)
