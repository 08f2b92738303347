"""Dense predictions for images of any size: a window that slides over them, and patches that become pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError

from .base import FrozenEncoder, patch_size


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride`` pixels, the last one moved back to end with the side."""
    count = max(0, -(-(side - window) // stride)) + 1
    return [max(0, min(number * stride, side - window)) for number in range(count)]


def slide(images: Tensor, window: int, stride: int, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """Predictions of square windows, averaged where they overlap.

    Args:
        images: ``(B, 3, H, W)``.
        window: side in pixels; a side of the image that is shorter is taken whole.
        stride: pixels from one window to the next, at most ``window``.
        predict: of a part of the images ``(B, 3, h, w)``, gives ``(B, C, h, w)``.

    Returns:
        ``(B, C, H, W)``.
    """
    height, width = images.shape[-2:]
    total, times = None, images.new_zeros(height, width)
    for top, left in product(starts(height, window, stride), starts(width, window, stride)):
        place = (..., slice(top, top + window), slice(left, left + window))
        found = predict(images[place])
        total = found.new_zeros(*found.shape[:2], height, width) if total is None else total
        total[place] += found
        times[place] += 1
    assert total is not None  # there is always a window
    return total / times


def check_window(window: int, stride: int, encoder: FrozenEncoder) -> None:
    """Raise a HuvrError for windows that no patch fits into or that leave gaps."""
    least = max(patch_size(encoder.network) or (1, 1))
    if window < least or not 1 <= stride <= window:
        raise HuvrError(
            f"window {window}, stride {stride}: expected a window of {least} pixels (a patch) or more, 1 <= stride <= window"
        )


def at_pixels(maps: Tensor, size: Sequence[int], patch: tuple[int, int] | None, margin: int = 0) -> Tensor:
    """One prediction per patch ``(B, C, h, w)`` to one per pixel ``(B, C, H, W)``, bilinear.

    Patches that reach over the edge of the image, as its sides are no multiple of theirs, are cut off there; where they end
    before it, the last prediction is repeated.

    Args:
        maps: predictions.
        size: (H, W) of the image.
        patch: height and width of a patch in pixels; None spreads them over the image.
        margin: pixels around the image that the first patches begin with.
    """
    if patch is None:
        return F.interpolate(maps, (size[0], size[1]), mode="bilinear")
    drawn = F.interpolate(maps, (maps.shape[-2] * patch[0], maps.shape[-1] * patch[1]), mode="bilinear")
    drawn = drawn[..., margin : margin + size[0], margin : margin + size[1]]
    down, right = size[0] - drawn.shape[-2], size[1] - drawn.shape[-1]
    return F.pad(drawn, (0, right, 0, down), mode="replicate") if down or right else drawn
