"""How good a reconstruction is: one value per image, for images ``(B, 3, H, W)`` in [0, 1] and unclamped reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError

PSNR_MOST = 100.0  # dB: a picture without any error must not make the mean infinite
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: ``(B,)``; its mean is the usual PSNR of a set."""
    # Not torchmetrics', which sends the sizes to the device and waits for it.
    return -10 * (reconstructions.float() - images.float()).square().mean((1, 2, 3)).log10()


def ssim(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004), Gaussian window of 11 pixels with sigma 1.5: ``(B,)``.

    Only whole windows count, as in pytorch_msssim and scikit-image; torchmetrics alone would average over a reflected border too.

    Raises:
        HuvrError: for images smaller than the window.
    """
    _check_window(images)
    # Not above: it takes a second to import, and drawing a photograph reports its PSNR alone.
    from torchmetrics.functional.image import structural_similarity_index_measure

    with torch.autocast(images.device.type, enabled=False):
        _, similarity = structural_similarity_index_measure(
            reconstructions.float(), images.float(), data_range=1.0, reduction="none", return_full_image=True
        )
    border = SSIM_WINDOW // 2
    return similarity[..., border:-border, border:-border].mean((1, 2, 3))


def ssim_nhwc(reconstructions: Tensor, images: Tensor) -> Tensor:
    """What the released validate.py reports as SSIM: ``(B,)``, lower than :func:`ssim`, and comparable with nothing else.

    It passes images channels-last to a function that expects channels first. The window then runs along the rows alone, as
    it is left out where an axis is shorter than it, here that of the three colours.

    Raises:
        HuvrError: for images smaller than the window.
    """
    _check_window(images)
    with torch.autocast(images.device.type, enabled=False):
        x, y = (each.float().flatten(0, 1)[:, None] for each in (reconstructions, images))
        offsets = torch.arange(SSIM_WINDOW, dtype=torch.float32, device=x.device) - SSIM_WINDOW // 2
        window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
        window = (window / window.sum()).view(1, 1, 1, -1)
        mean_x, mean_y, xx, yy, xy = (F.conv2d(each, window) for each in (x, y, x * x, y * y, x * y))
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * (xy - mean_x * mean_y) + 0.03**2) / (xx - mean_x**2 + yy - mean_y**2 + 0.03**2)
    return (luminance * structure).unflatten(0, images.shape[:2]).mean((1, 2, 3, 4))


def _check_window(images: Tensor) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise HuvrError(f"SSIM of images of {height}x{width} pixels: sides of at least {SSIM_WINDOW} are needed")
