"""What all hyper-networks have in common: an image gives the parameters of an INR, which paints at any coordinates."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.hypernets.coordinates import check_domain, pixel_centres
from huvr.model.tokens import Tokens
from huvr.refine import refined

POINTS = 2**16  # painted at once; bounds the memory of large pictures


@dataclass(frozen=True)
class INRParameters:
    """What tells the INR of one image from that of another.

    Attributes:
        tensors: each ``(B, …, D)``, vectors of D numbers; what they mean is up to the network.
        size: (H, W) of the images in pixels.
    """

    tensors: tuple[Tensor, ...]
    size: tuple[int, int]

    @property
    def numbers(self) -> int:
        """Numbers per image."""
        return sum(tensor[0].numel() for tensor in self.tensors)


class HyperINR(nn.Module):
    """A hyper-network with the INR that it feeds. Images are float in [0, 1]; what it paints is unclamped.

    A subclass has ``encode``, ``tokens``, and ``_paint`` or a ``paint`` that bounds memory in a way of its own.

    Args:
        config: the arguments of the subclass, plain values and dataclasses; a checkpoint keeps them.

    Attributes:
        least: side in pixels of the smallest image.
        num_features: numbers per token of ``tokens``, by timm's name for it.
    """

    least: int
    num_features: int

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = {name: asdict(value) if is_dataclass(value) else value for name, value in config.items()}  # type: ignore[arg-type]

    def encode(self, images: Tensor, mask: Tensor | None = None) -> INRParameters:
        """Parameters of images ``(B, 3, H, W)``.

        ``mask`` ``(B, 1, H, W)`` is true where pixels were blackened; a network that sees pixels alone has no use for it.
        """
        raise NotImplementedError

    def tokens(self, images: Tensor) -> Tokens:
        """What the encoder knows of images ``(B, 3, H, W)``; for tasks with frozen tokens."""
        raise NotImplementedError

    def _paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        """RGB ``(B, N, 3)`` at points ``(B, N, 2)``, or ``(1, N, 2)`` that all images share."""
        raise NotImplementedError

    def tintoks(self, images: Tensor) -> Tokens:
        """The TinToks of images, for the network that has them."""
        raise HuvrError(f"{type(self).__name__} has no TinToks, only HUVR has; its tokens are of the kind standard")

    def query(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        """RGB at any points.

        Args:
            parameters: as :meth:`encode` gives them.
            coordinates: (row, column) from -1 to 1, ``(B, N, 2)``, or ``(1, N, 2)`` for points that all images share.

        Returns:
            ``(B, N, 3)``.

        Raises:
            HuvrError: for points outside of the domain.
        """
        check_domain(coordinates)
        if len(coordinates) not in (1, len(parameters.tensors[0])):
            raise HuvrError(f"coordinates of {len(coordinates)} images, parameters of {len(parameters.tensors[0])}")
        return self.paint(parameters, coordinates)

    def paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        """:meth:`query` of points known to be in the domain, which saves waiting for a GPU."""
        return torch.cat([self._paint(parameters, part) for part in coordinates.split(POINTS, dim=1)], dim=1)

    def render(self, parameters: INRParameters, size: tuple[int, int] | None = None, scale: float = 1.0) -> Tensor:
        """The whole image on a grid of pixels.

        Args:
            parameters: as :meth:`encode` gives them.
            size: (H, W) of the picture at scale 1; None is that of the images, which scale 1 paints as in training.
            scale: any positive factor; the picture has the nearest whole number of pixels.

        Returns:
            ``(B, 3, H', W')``.
        """
        if not 0 < scale < math.inf:
            raise HuvrError(f"scale {scale}: expected a positive number")
        if min(size or parameters.size) < 1:
            raise HuvrError(f"size {size}: expected 1 pixel or more down and across")
        height, width = (max(1, round(side * scale)) for side in size or parameters.size)
        coordinates = pixel_centres((height, width), parameters.tensors[0].device)
        return self.paint(parameters, coordinates).transpose(1, 2).unflatten(2, (height, width))

    def reconstruct(
        self, images: Tensor, size: tuple[int, int] | None = None, scale: float = 1.0, mask: Tensor | None = None
    ) -> Tensor:
        """Through the parameters and back, see :meth:`encode` and :meth:`render`."""
        return self.render(self.encode(images, mask), size, scale)

    def refine(self, parameters: INRParameters, images: Tensor, steps: int) -> INRParameters:
        """Parameters from which the images that they are of are drawn better, see :func:`huvr.refine.refined`."""
        self.check(images)

        def draw(*tensors: Tensor) -> Tensor:
            return self.render(replace(parameters, tensors=tensors))

        precision = next(self.parameters()).dtype
        start = [tensor.to(precision) for tensor in parameters.tensors]
        return replace(parameters, tensors=refined(draw, start, images, steps))

    def loss(self, painted: Tensor, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Between two pictures, by the convention of the network's paper; here over all pixels, in [0, 1]."""
        return F.mse_loss(painted.float(), images.float())

    def check(self, images: Tensor) -> tuple[int, int]:
        """(H, W) of images that the network can take.

        Raises:
            HuvrError: for anything else.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise HuvrError(f"images of shape {tuple(images.shape)}, {images.dtype}: expected floating-point (B, 3, H, W)")
        height, width = images.shape[-2:]
        if min(height, width) < self.least:
            raise HuvrError(f"images of {height}x{width} pixels are smaller than a patch of {self.least}")
        return height, width
