"""The two ways to look at a photograph: a random crop in training, its middle otherwise."""

from __future__ import annotations

from functools import cache

from torchvision.transforms import InterpolationMode, v2


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
