"""How good a reconstruction is: one value per image, for images ``(B, 3, H, W)`` in [0, 1] and unclamped reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from huvr.errors import HuvrError

SSIM_WINDOW = 11


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: ``(B,)``; its mean is the usual PSNR of a set."""
    return peak_signal_noise_ratio(reconstructions.float(), images.float(), data_range=1.0, dim=(1, 2, 3), reduction="none")


def ssim(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004), Gaussian window of 11 pixels with sigma 1.5: ``(B,)``.

    Only whole windows count, as in pytorch_msssim and scikit-image; torchmetrics alone would average over a reflected border too.

    Raises:
        HuvrError: for images smaller than the window.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise HuvrError(
            f"SSIM of images of {images.shape[-2]}x{images.shape[-1]} pixels: sides of at least {SSIM_WINDOW} are needed"
        )
    with torch.autocast(images.device.type, enabled=False):
        _, similarity = structural_similarity_index_measure(
            reconstructions.float(), images.float(), data_range=1.0, reduction="none", return_full_image=True
        )
    border = SSIM_WINDOW // 2
    return similarity[..., border:-border, border:-border].mean((1, 2, 3))
