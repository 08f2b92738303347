"""How far predicted depth is from the truth, and the loss that brings it there. All depths are in metres."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

PER_IMAGE = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")
LOG_SHIFT = 1e-3  # keeps the logarithm of the loss, and its gradient, finite


def image_metrics(predicted: Tensor, truth: Tensor) -> Tensor:
    """The metrics named by ``PER_IMAGE`` over the measured pixels of one image, ``(6,)`` (Eigen et al., 2014).

    Root mean square error in metres, mean of |p - t| / t, mean of |log10 p - log10 t|, and the shares of pixels, in per
    cent, with max(p / t, t / p) below 1.25, 1.25² and 1.25³.

    Args:
        predicted: ``(n,)``, above 0.
        truth: the same.
    """
    error, ratio = (predicted - truth).abs(), torch.maximum(predicted / truth, truth / predicted)
    deltas = [100 * (ratio < 1.25**power).to(error.dtype).mean() for power in (1, 2, 3)]
    log10 = (predicted.log10() - truth.log10()).abs().mean()
    return torch.stack([error.square().mean().sqrt(), (error / truth).mean(), log10, *deltas])


class DepthMetrics(Metric):
    """Means over the images of a set, exact over batches and processes.

    ``rmse`` is the mean of the images' own RMSE, as DINOv3 reports it; ``rmse_pooled`` is that of all pixels of the set
    together, which is never smaller if all images have as many.
    """

    full_state_update = False
    images: Tensor
    sums: Tensor
    pixels: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("images", zero.long(), "sum")
        self.add_state("sums", zero.repeat(len(PER_IMAGE)), "sum")
        self.add_state("pixels", zero.long(), "sum")
        self.add_state("squares", zero, "sum")

    def update(self, predicted: Tensor, truth: Tensor, measured: Tensor) -> None:
        """Add images.

        Args:
            predicted: ``(B, H, W)``, above 0 where measured.
            truth: the same.
            measured: bool ``(B, H, W)``, which pixels count: one or more of each image.
        """
        for p, t, pixels in zip(predicted.double(), truth.double(), measured, strict=True):
            p, t = p[pixels], t[pixels]
            self.images += 1
            self.sums += image_metrics(p, t)
            self.pixels += len(t)
            self.squares += (p - t).square().sum()

    def compute(self) -> dict[str, Any]:
        means = dict(zip(PER_IMAGE, self.sums / self.images, strict=True))
        return means | {"rmse_pooled": (self.squares / self.pixels).sqrt()}


def sig_loss(predicted: Tensor, truth: Tensor, with_variance: bool = True) -> Tensor:
    """Scale-invariant log loss: sqrt(var(g) + 0.15 mean(g)²) of g = log(p + 0.001) - log(t + 0.001) (DINOv3, eval/depth/loss.py).

    Args:
        predicted: ``(n,)``, of all measured pixels of a batch, two or more.
        truth: the same.
        with_variance: False leaves the first term out, as DINOv3 does in its first 100 steps.
    """
    g = (predicted + LOG_SHIFT).log() - (truth + LOG_SHIFT).log()
    square = 0.15 * g.mean().square() + (g.var() if with_variance else 0)
    return square.sqrt() if square > 0 else square  # the root has no gradient at 0
