"""The augmentation of DINOv3's linear segmentation, of torchvision's transforms and three that it lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from huvr.errors import HuvrError

from .labels import NO_LABEL

GREY = (124, 116, 104)  # ImageNet's mean colour, which is 0 once normalised


class TrainView(v2.Compose):
    """The augmentation of DINOv3's linear segmentation (eval/segmentation/transforms.py), on uint8 images and labels.

    A random scale, a crop without a class that fills it, a flip, other colours, and padding below and to the right where
    the image is smaller than the crop.

    Args:
        short_side: pixels of the shorter side at scale 1.
        scales: the least and the greatest scale.
        crop: side in pixels of the square.
        max_share: of the labelled pixels of a crop, for the commonest class; 10 crops are tried.
    """

    def __init__(
        self, short_side: int = 512, scales: tuple[float, float] = (0.5, 2.0), crop: int = 512, max_share: float = 0.75
    ) -> None:
        if min(short_side, crop) < 1 or not 0 < scales[0] <= scales[1] or not 0 < max_share <= 1:
            raise HuvrError(
                f"train_view: short_side {short_side}, scales {tuple(scales)}, crop {crop}, max_share {max_share}: "
                "expected pixels, two positive scales, the lesser first, and a share up to 1"
            )
        least, greatest = (int(short_side * scale) for scale in scales)
        super().__init__([
            v2.RandomShortestSize(list(range(max(1, least), max(least + 1, greatest))), antialias=True),
            MixedCrop(crop, max_share),
            v2.RandomHorizontalFlip(),
            distortion(),
            PadTo(crop),
        ])  # fmt: skip


class MixedCrop(v2.Transform):
    """A random square, drawn again up to 10 times while one class fills more than ``max_share`` of its labelled pixels."""

    def __init__(self, size: int, max_share: float, tries: int = 10) -> None:
        super().__init__()
        self.size, self.max_share, self.tries = size, max_share, tries

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        labels = next(each for each in flat_inputs if isinstance(each, tv_tensors.Mask)).as_subclass(Tensor)
        rooms = [max(side - self.size, 0) + 1 for side in labels.shape]
        for _ in range(self.tries + 1):
            top, left = (int(torch.randint(room, ())) for room in rooms)
            crop = labels[top : top + self.size, left : left + self.size]
            counts = torch.bincount(crop[crop != NO_LABEL])
            if (counts > 0).sum() > 1 and counts.max() < self.max_share * counts.sum():
                break
        height, width = crop.shape
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class PadTo(v2.Transform):
    """Grey, and pixels without a label, below and to the right up to a square."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        fill: Any = NO_LABEL if isinstance(inpt, tv_tensors.Mask) else GREY
        return self._call_kernel(F.pad, inpt, [0, 0, max(self.size - width, 0), max(self.size - height, 0)], fill=fill)


class Lighter(v2.Transform):
    """Adds the same random number, up to ``most`` of 255 either way, to every colour of every pixel."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, float]:
        return {"more": float(torch.empty(()).uniform_(-self.most, self.most))}

    def transform(self, inpt: tv_tensors.Image, params: dict[str, float]) -> tv_tensors.Image:
        return tv_tensors.wrap((inpt + params["more"]).clamp(0, 255).to(torch.uint8), like=inpt)


def distortion() -> v2.Compose:
    """Photometric distortion, each part half of the time: brightness ±32, then contrast first or last, saturation and hue.

    "Contrast" multiplies all colours by 0.5 to 1.5, which torchvision calls brightness.
    """
    contrast, saturation, hue = (
        v2.RandomApply([v2.ColorJitter(**change)]) for change in ({"brightness": 0.5}, {"saturation": 0.5}, {"hue": 0.5})
    )
    orders = [v2.Compose(each) for each in ([contrast, saturation, hue], [saturation, hue, contrast])]
    return v2.Compose([v2.RandomApply([Lighter(32)]), v2.RandomChoice(orders)])
