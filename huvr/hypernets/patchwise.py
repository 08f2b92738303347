"""HUVR behind the interface of the other hyper-networks."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from huvr.hypernets.interface import HyperINR, INRParameters
from huvr.losses import pixel_loss
from huvr.model import HUVR, HUVRConfig, Tokens
from huvr.model.cosine_head import cosines
from huvr.model.inr import encode_positions

STEP = 1e-4  # pixels; offsets nearer than this are the same
CELLS = 2**16  # of the INR's features, computed at once; bounds the memory of scattered points
LEAST = 2**10  # cells; painting a picture of fewer takes as long


class PatchwiseHUVR(HyperINR):
    """A HUVR network; the parameters of an image are its TinToks, global ones ``(B, d)`` and those of patches ``(B, h * w, d)``.

    Its convolution joins neighbouring points, so a whole picture at one offset from the pixel centres is the cheapest: whole
    scales paint a few of these, and so do points at a few offsets. Any other point costs nine points of the INR.

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
        if size in (None, parameters.size) and scale >= 1 and float(scale).is_integer():
            return self.net.render(self._decoded(parameters), parameters.size, int(scale))
        return super().render(parameters, size, scale)

    def paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        """One picture after the other where the points lie at few offsets from pixel centres, else in parts of bounded memory."""
        decoded, batch = self._decoded(parameters), len(parameters.tensors[0])
        sides = coordinates.new_tensor(parameters.size)
        places = (coordinates + 1) / 2 * sides - 0.5
        # a point between two pixels is the latter's, whatever rounding did to it
        pixels = torch.minimum((places + 0.5 + STEP / 2).floor().clamp_min(0), sides - 1)
        offsets = places - pixels
        groups, which, counts = (offsets / STEP).round().flatten(0, 1).unique(dim=0, return_inverse=True, return_counts=True)
        cells = batch * math.prod(decoded.grid) * self.net.inr.cells**2
        if len(groups) * max(cells, LEAST) <= 9 * batch * coordinates.shape[1]:
            means = torch.zeros_like(groups).index_add(0, which, offsets.flatten(0, 1)) / counts[:, None]
            return self._paint_pictures(decoded, pixels.long(), means, which.view(pixels.shape[:2]))
        length = max(1, CELLS // (9 * batch))
        parts = zip(pixels.long().split(length, dim=1), offsets.split(length, dim=1), strict=True)
        # what gradients need is not kept, but computed again
        again = functools.partial(checkpoint, self._paint_points, decoded, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(*part) for part in parts], dim=1)

    def _paint_pictures(self, decoded: Tokens, pixels: Tensor, offsets: Tensor, which: Tensor) -> Tensor:
        """RGB ``(B, N, 3)`` of pixels ``(b, N, 2)`` at the offsets ``(G, 2)`` that ``which`` ``(b, N)`` names; b is B or 1."""
        rows, columns = pixels.unbind(-1)
        images = torch.arange(len(decoded.cls), device=rows.device)[:, None]
        painted = decoded.cls.new_zeros(len(images), rows.shape[1], 3)
        for number, (down, right) in enumerate(offsets.tolist()):
            picture = self.net.paint(decoded, (down, right))
            painted = torch.where((which == number)[..., None], picture[images, :, rows, columns], painted)
        return painted

    def _paint_points(self, decoded: Tokens, pixels: Tensor, offsets: Tensor) -> Tensor:
        """RGB ``(B, N, 3)`` of pixels ``(b, N, 2)``, each at its own offset ``(b, N, 2)`` from its centre.

        The convolution sees the cell of a pixel and the eight around it. To the INR, these are one patch of a picture that is
        N patches wide.
        """
        inr, (h, w) = self.net.inr, decoded.grid
        u, c = inr.to_patch(decoded.patches), inr.to_global(decoded.cls)
        images = torch.arange(len(u), device=u.device)[:, None]
        around = torch.arange(-1, 2, device=u.device)
        around = torch.stack(torch.meshgrid(around, around, indexing="ij"), dim=-1)[:, None]  # (3, 1, 3, 2)
        cells = (pixels // inr.upsample)[:, None, None, :, None] + around.to(pixels)  # (b, 1, 3, N, 3, 2)
        limit = pixels.new_tensor((h, w)) * inr.cells
        inside = ((cells >= 0) & (cells < limit)).all(-1, keepdim=True)
        patches = torch.minimum(cells.clamp_min(0), limit - 1) // inr.cells
        numbers = patches[..., 0] * w + patches[..., 1]
        within = (cells % inr.cells + 0.5) * (2 / inr.cells) - 1 + offsets[:, None, None, :, None] * (2 / inr.patch)
        encoded = encode_positions(within, inr.frequencies, inr.max_frequency).to(u.dtype)
        features = inr.features(encoded, u[images[..., None, None, None], numbers], c) * inside
        features = features.flatten(3, 4)[:, 0].permute(0, 3, 1, 2)  # (B, C, 3, 3 * N)
        colours = inr.paint(features)[:, :, 1, 1::3].unflatten(1, (3, inr.upsample, inr.upsample))
        rows, columns = (pixels % inr.upsample).unbind(-1)
        painted = colours[images, :, rows, columns, torch.arange(rows.shape[1], device=u.device)]
        if inr.cosine_head is not None:
            own = numbers[:, 0, 1, :, 1]
            coefficients = inr.cosine_head.of_patch(u) + inr.cosine_head.of_global(c)[:, None]
            coefficients = coefficients[images, own].unflatten(-1, (3, inr.patch, inr.patch))
            waves = cosines(pixels % inr.patch + offsets, inr.patch).to(u.dtype)
            painted = painted + torch.einsum("bnk,bnckl,bnl->bnc", waves[:, :, 0], coefficients, waves[:, :, 1])
        return painted / 2 + 0.5

    def loss(self, painted: Tensor, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return pixel_loss(painted, images)

    def refine(self, parameters: INRParameters, images: Tensor, steps: int) -> INRParameters:
        tintoks = self.net.refine(self._tintoks(parameters), images, steps)
        return replace(parameters, tensors=(tintoks.cls, tintoks.patches))

    def _tintoks(self, parameters: INRParameters) -> Tokens:
        down, across = (-(-side // self.net.patch) for side in parameters.size)
        cls, patches = parameters.tensors
        return Tokens(cls, patches, (down, across))

    def _decoded(self, parameters: INRParameters) -> Tokens:
        return self.net.expand(self._tintoks(parameters))
