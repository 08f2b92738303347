"""Images with their depth: read, changed for training as in DINOv3's probe (eval/depth/transforms.py), and shown.

The changes are transforms of torchvision v2, which turn an ``Image`` bilinearly and the depth, a ``Mask``, by the nearest
pixel; what a rotation uncovers has depth 0, which is no depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from huvr.errors import HuvrError
from huvr.viz import ERROR_GAIN, heat

Box = tuple[int, int, int, int]  # (top, bottom, left, right) in pixels, the last row and column not included
UNKNOWN = 0.5  # grey, no colour of the map, for pixels without a depth


@dataclass(frozen=True)
class ReadDepth:
    """Depth as it is stored to metres in fp32, both ``(H, W)``; 0 stands for no depth.

    Raises:
        HuvrError: for a negative or non-finite depth, or an image without any between ``low`` and ``high`` metres.
    """

    scale: float
    low: float
    high: float

    def __call__(self, stored: Tensor, name: str) -> Tensor:
        depth = stored.float() / self.scale
        low, high = depth.aminmax()
        if not (low >= 0 and high < float("inf")):
            raise HuvrError(f"{name}: depth of {low:g} to {high:g} m; expected finite numbers from 0 on, 0 where there is none")
        # A hundredth of the greatest depth is nearer than anything: metres read as millimetres.
        if not ((depth > max(self.low, self.high / 100)) & (depth < self.high)).any():
            expected = f"expected some between {self.low:g} and {self.high:g} m, {self.scale:g} being stored for a metre"
            raise HuvrError(f"{name}: depth of {low:g} to {high:g} m; {expected}")
        return depth


def tiles(image: Tensor, truth: Tensor, valid: Tensor, predicted: Tensor) -> Tensor:
    """Image | truth | prediction ``(3, 3, H, W)`` in [0, 1], on the CPU; black is the least valid depth, white the greatest.

    Args:
        image: ``(3, H', W')`` in [0, 1].
        truth, predicted: ``(H, W)`` in metres.
        valid: bool ``(H, W)``, one pixel or more; the truth is grey elsewhere.
    """
    low, high = truth[valid].aminmax()
    depths = (torch.stack([truth, predicted]) - low) / (high - low).clamp_min(1e-6)
    colours = heat(depths.float().cpu() / ERROR_GAIN)
    colours[0] = torch.where(valid.cpu(), colours[0], UNKNOWN)
    return torch.cat([F.resize(image.float().cpu(), list(truth.shape))[None].clamp(0, 1), colours])


def inside(box: Box, size: tuple[int, int], name: str) -> None:
    """Raise a HuvrError unless the box lies inside of an image of ``size`` (H, W)."""
    top, bottom, left, right = box
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        place = f"rows {top}:{bottom}, columns {left}:{right}"
        raise HuvrError(f"{name} of {place}: not inside of an image of {size[0]}x{size[1]} pixels")


class FixedCrop(v2.Transform):
    """The same box of each image."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.box = box

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        height, width = F.get_size(flat_inputs[0])
        inside(self.box, (height, width), "fixed_crop")

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        top, bottom, left, right = self.box
        return F.crop(inpt, top, left, bottom - top, right - left)


class ColourJitter(v2.Transform):
    """Random gamma, brightness, and a factor for each colour; the depth stays as it is.

    As in the source the gamma acts on values of 0 to 255, not of 0 to 1: one of 1.1 brightens, 255 would become 443.

    Args:
        gamma, brightness, colour: ranges of what is drawn evenly.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, gamma: tuple[float, float], brightness: tuple[float, float], colour: tuple[float, float]) -> None:
        super().__init__()
        self.gamma, self.brightness, self.colour = gamma, brightness, colour

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        gamma, brightness = (torch.empty(()).uniform_(*limits) for limits in (self.gamma, self.brightness))
        return {"gamma": gamma, "factors": brightness * torch.empty(3, 1, 1).uniform_(*self.colour)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Any:
        jittered = (255 * inpt) ** params["gamma"] * params["factors"] / 255
        return tv_tensors.wrap(jittered.clamp(0, 1), like=inpt)


class RandomCrop(v2.RandomCrop):
    """torchvision's, with a mistake in one line."""

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        size = F.get_size(flat_inputs[0])
        if any(crop > side for crop, side in zip(self.size, size, strict=True)):
            raise HuvrError(
                f"crop {self.size[0]}x{self.size[1]}: not inside of what the fixed crop leaves, {size[0]}x{size[1]} pixels"
            )


class DepthView(v2.Compose):
    """Fixed crop, rotation, mirror image, random crop and colours; all but the crops befall every other image.

    Args:
        fixed_crop: (top, bottom, left, right) of what is used of each image; None uses all of it.
        rotation: degrees to either side.
        crop: (height, width) of the random crop; None takes none.
        gamma, brightness, colour: see :class:`ColourJitter`.
    """

    def __init__(
        self,
        fixed_crop: Box | None = None,
        rotation: float = 2.5,
        crop: tuple[int, int] | None = None,
        gamma: tuple[float, float] = (0.9, 1.1),
        brightness: tuple[float, float] = (0.75, 1.25),
        colour: tuple[float, float] = (0.9, 1.1),
    ) -> None:
        for name, (low, high) in {"gamma": gamma, "brightness": brightness, "colour": colour}.items():
            if not 0 < low <= high:
                raise HuvrError(f"{name} {[low, high]}: expected two positive numbers, the smaller one first")
        if crop is not None and min(crop) < 1:
            raise HuvrError(f"crop {list(crop)}: expected a height and a width of 1 pixel or more")
        if not 0 <= rotation <= 180:
            raise HuvrError(f"rotation {rotation}: expected 0 to 180 degrees")
        turn = v2.RandomRotation(rotation, InterpolationMode.BILINEAR)
        super().__init__([
            *([FixedCrop(fixed_crop)] if fixed_crop else []),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.RandomApply([turn], p=0.5),
            v2.RandomHorizontalFlip(),
            *([RandomCrop(crop)] if crop else []),
            v2.RandomApply([ColourJitter(gamma, brightness, colour)], p=0.5),
        ])  # fmt: skip
