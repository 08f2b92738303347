"""Measures of reconstruction against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from huvr.errors import HuvrError
from huvr.metrics import psnr, ssim, ssim_nhwc


def batch(size: int, side: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(size, 3, side, side)
    return images + noise * torch.randn_like(images), images  # leaves [0, 1] on purpose


def test_psnr_is_per_image_and_unclamped() -> None:
    torch.manual_seed(0)
    painted, images = batch(4, 16, 0.3)
    expected = [peak_signal_noise_ratio(i.numpy(), p.numpy(), data_range=1.0) for p, i in zip(painted, images, strict=True)]
    np.testing.assert_allclose(psnr(painted, images).numpy(), expected, rtol=1e-5)


def test_ssim_is_per_image_and_counts_whole_windows() -> None:
    torch.manual_seed(1)
    painted, images = batch(3, 24, 0.1)
    window = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        structural_similarity(i.numpy(), p.numpy(), data_range=1.0, **window) for p, i in zip(painted, images, strict=True)
    ]
    np.testing.assert_allclose(ssim(painted, images).numpy(), expected, rtol=1e-5)


def test_ssim_of_a_postage_stamp_is_an_error() -> None:
    with pytest.raises(HuvrError, match="8x8 pixels: sides of at least 11"):
        ssim(*batch(1, 8, 0.1))


def test_the_released_ssim_is_the_same_in_a_step_of_bf16_true() -> None:
    pair = batch(2, 24, 0.1)
    with HalfPrecision("bf16-true").forward_context():
        found = ssim_nhwc(*pair)
    assert torch.equal(found, ssim_nhwc(*pair))
