"""The ways to look at a photograph: a crop in training, its middle otherwise."""

from __future__ import annotations

from functools import cache, partial
from typing import Literal

from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

Crop = Literal["resized", "native", "centre"]


@cache
def training_view(
    size: tuple[int, int], crop: Crop = "resized", scale: tuple[float, float] = (0.2, 1.0), colour: float = 0.0
) -> v2.Compose:
    """What training sees of a photograph, PIL to uint8 ``(3, H, W)``.

    Args:
        size: (H, W) in pixels.
        crop: "resized", see :func:`random_crop`; "native", a random place of it as it is, mirrored or not; "centre", its
            middle after the shorter side was made as long as ``size``, with nothing random.
        scale: of "resized".
        colour: strength of random changes of colour.
    """
    if crop == "resized":
        return random_crop(size, scale, colour)
    cut = [v2.RandomCrop(size), v2.RandomHorizontalFlip()] if crop == "native" else [v2.CenterCrop(size)]
    jitter = [colour_jitter(colour)] if colour else []
    return v2.Compose([partial(covering, size=size, shrink=crop == "centre"), *cut, v2.PILToTensor(), *jitter])


def covering(picture: Image.Image, size: tuple[int, int], shrink: bool) -> Image.Image:
    """The picture made just large enough for ``size`` (H, W) to be cut out, bicubic; a larger one as it is unless ``shrink``."""
    width, height = picture.size
    if height >= size[0] and width >= size[1] and not shrink:
        return picture
    tall, wide = (size[0], size[0] * width // height), (size[1] * height // width, size[1])  # rounded as by torchvision
    return TF.resize(picture, [*max(tall, wide)], InterpolationMode.BICUBIC, antialias=True)


@cache
def random_crop(size: tuple[int, int], scale: tuple[float, float], colour: float = 0.0) -> v2.Compose:
    """Random resized crop and flip, PIL to uint8 ``(3, H, W)`` (the released recipe; bicubic, antialiased).

    The crop's aspect ratio varies by 3:4 to 4:3 around that of ``size``, so that no shape of ``size``
    distorts what is in the picture.

    Args:
        size: (H, W) in pixels.
        scale: the least and the greatest share of the photograph's area that a crop covers.
        colour: strength, 0 to 1, of random changes of brightness, contrast, saturation and hue (released: none).
    """
    aspect = size[1] / size[0]
    crop = v2.RandomResizedCrop(size, scale, (3 / 4 * aspect, 4 / 3 * aspect), InterpolationMode.BICUBIC, antialias=True)
    jitter = [colour_jitter(colour)] if colour else []
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor(), *jitter])


def colour_jitter(strength: float) -> v2.ColorJitter:
    """Random changes of brightness, contrast, saturation and hue of one image, on whatever device it is."""
    return v2.ColorJitter(strength, strength, strength, strength / 2)


@cache
def centre_crop(size: int, shorter: int | None = None) -> v2.Compose:
    """The middle square, PIL to uint8 ``(3, size, size)``, after the shorter side was made ``shorter`` pixels, or ``size``.

    Bicubic, antialiased.
    """
    resize = v2.Resize(shorter or size, InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])
