"""HUVR behind the interface of the other hyper-networks."""

from __future__ import annotations

import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.hypernets.interface import HyperINR, INRParameters
from huvr.losses import pixel_loss
from huvr.model import HUVR, HUVRConfig, Tokens

OFFSETS = 64  # inside the pixels; each costs a pass over the whole picture
STEP = 1e-4  # pixels; offsets nearer than this are the same


class PatchwiseHUVR(HyperINR):
    """A HUVR network; the parameters of an image are its TinToks, global ones ``(B, d)`` and those of patches ``(B, h * w, d)``.

    Its convolution joins neighbouring points, so it paints a whole picture at one offset from the pixel centres. Points
    at a few offsets can be queried, such as a grid of any whole scale; points scattered at random cannot.

    Args:
        net: shape of the network.
    """

    def __init__(self, net: HUVRConfig) -> None:
        super().__init__(net=net)
        self.net = HUVR(net)
        self.least, self.num_features = self.net.patch, self.net.encoder.dim

    @classmethod
    def of(cls, model: HUVR) -> PatchwiseHUVR:
        """A network that exists already."""
        with torch.device("meta"):  # its weights are not needed
            found = cls(model.config)
        found.net = model
        return found

    def encode(self, images: Tensor, mask: Tensor | None = None) -> INRParameters:
        size = self.check(images)
        tintoks = self.tintoks(images)
        return INRParameters((tintoks.cls, tintoks.patches), size)

    def tokens(self, images: Tensor) -> Tokens:
        return self.net.encode(images)

    def tintoks(self, images: Tensor) -> Tokens:
        return self.net.compress(self.net.encode(images))

    def render(self, parameters: INRParameters, size: tuple[int, int] | None = None, scale: float = 1.0) -> Tensor:
        if size not in (None, parameters.size):
            height, width = parameters.size
            raise HuvrError(f"size {size[0]}x{size[1]}: HUVR paints {height}x{width} pixels, and whole multiples by scale")
        if not (scale >= 1 and float(scale).is_integer()):
            raise HuvrError(f"scale {scale}: HUVR paints at whole scales, 1 or more")
        return self.net.render(self._decoded(parameters), parameters.size, int(scale))

    def _paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        decoded, batch = self._decoded(parameters), len(parameters.tensors[0])
        sides = coordinates.new_tensor(parameters.size)
        places = (coordinates.expand(batch, -1, -1) + 1) / 2 * sides - 0.5
        pixels = torch.minimum(places.round().clamp_min(0), sides - 1)
        offsets, which = ((places - pixels) / STEP).round().flatten(0, 1).unique(dim=0, return_inverse=True)
        if len(offsets) > OFFSETS:
            raise HuvrError(
                f"HUVR paints at one offset from all pixel centres at a time: these points lie at {len(offsets)} offsets, "
                f"at most {OFFSETS} are allowed; leave coordinate jitter to other networks"
            )
        rows, columns = pixels.long().unbind(-1)
        images = torch.arange(batch, device=rows.device)[:, None]
        painted, which = coordinates.new_zeros(batch, coordinates.shape[1], 3), which.view(batch, -1, 1)
        for number, (down, right) in enumerate((offsets * STEP).tolist()):
            picture = self.net.paint(decoded, (down, right))
            painted = torch.where(which == number, picture[images, :, rows, columns].to(painted.dtype), painted)
        return painted

    def loss(self, painted: Tensor, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return pixel_loss(painted, images)

    def _decoded(self, parameters: INRParameters) -> Tokens:
        down, across = (-(-side // self.net.patch) for side in parameters.size)
        cls, patches = parameters.tensors
        return self.net.expand(Tokens(cls, patches, (down, across)))
