"""Depth from patch tokens: DINOv3's linear probe (eval/depth), as on NYUv2."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from huvr.data.loader import Batch, images_of
from huvr.errors import HuvrError, require
from huvr.optim import go_on_with, scheduled, training_steps
from huvr.viz import GAP, save_png, to_uint8

from .base import EncoderConfig, FrozenEncoderTask, cut
from .depth_metrics import DepthMetrics, sig_loss
from .depth_views import Box, ReadDepth, inside, tiles
from .sliding import at_pixels

PICTURED = 8  # images in depth.png
WITHOUT_VARIANCE = 100  # first steps, in which the loss has no variance term


class DepthHead(nn.Module):
    """Features ``(B, D, h, w)`` to depth in metres ``(B, h, w)``: BatchNorm, a linear map to bins, and their weighted mean.

    The bins lie evenly from ``low`` to ``high``; the weight of each is relu(x) + 0.1 (DINOv3, eval/depth/models).
    """

    def __init__(self, dim: int, bins: int, low: float, high: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.linear = nn.Conv2d(dim, bins, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]
        self.register_buffer("depths", torch.linspace(low, high, bins), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        weights = self.linear(self.norm(features)).relu() + 0.1
        return torch.einsum("bkhw,k->bhw", weights, self.depths) / weights.sum(1)


class Depth(FrozenEncoderTask):
    """Depth of every pixel, from a linear map of the patch tokens.

    The protocol of DINOv3 (eval/depth) on batches of :class:`huvr.tasks.pairs.Pairs`. Training takes the truth where it is
    above 0; tests take it between ``min_depth`` and ``max_depth`` and inside of ``mask``. Their prediction is the mean of
    those for the image and its mirror image, clamped to these depths and aligned in no way. ``bytes_per_image`` counts the
    image, not its mirror image. The run folder gets ``depth.png``: image | truth | prediction, near black and far white.

    Args:
        encoder: the frozen encoder.
        min_depth, max_depth: in metres.
        bins: depths between them, of which the prediction is a weighted mean.
        depth_scale: what is stored for a metre, 1000 in PNGs of millimetres.
        mask: (top, bottom, left, right) in pixels of the truth, where tests measure; None measures everywhere.
        lr: of AdamW, greatest value of the schedule, see :func:`one_cycle`.
        warmup_steps: in which it rises.
        betas, weight_decay: of AdamW.

    Raises:
        HuvrError: for numbers that make no sense; on the way, for depth that cannot be right, and a mask outside of it.
    """

    headline, lower_is_better = "rmse", True

    def __init__(
        self,
        encoder: EncoderConfig,
        min_depth: float = 0.001,
        max_depth: float = 10.0,
        bins: int = 256,
        depth_scale: float = 1000.0,
        mask: Box | None = None,
        lr: float = 3e-4,
        warmup_steps: int = 12800,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__(encoder)
        require({
            f"min_depth {min_depth}, max_depth {max_depth}: expected 0 <= min_depth < max_depth, in metres": (
                0 <= min_depth < max_depth < math.inf
            ),
            f"bins {bins}: expected 2 or more": bins >= 2,
            f"depth_scale {depth_scale}, lr {lr}: expected positive numbers": min(depth_scale, lr) > 0,
            f"warmup_steps {warmup_steps}, weight_decay {weight_decay}: expected 0 or more": min(warmup_steps, weight_decay) >= 0,
            f"betas {list(betas)}: expected two numbers from 0 to below 1": all(0 <= beta < 1 for beta in betas),
        })  # fmt: skip
        self.low, self.high, self.mask = min_depth, max_depth, mask
        self.lr, self.warmup_steps, self.betas, self.weight_decay = lr, warmup_steps, betas, weight_decay
        self.read_target = ReadDepth(depth_scale, min_depth, max_depth)
        self.head = DepthHead(self.encoder.dim, bins, min_depth, max_depth)
        self.metrics = DepthMetrics()
        self._tiles: list[Tensor] = []
        self._every = 1

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] to depth in metres, brought to ``size`` bilinearly: ``(B, *size)``."""
        depth = self.head(self.encoder(images).map)[:, None]
        return F.interpolate(at_pixels(depth, images.shape[-2:], *cut(self.encoder.network)), size, mode="bilinear")[:, 0]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        truth = batch["target"]
        valid = truth > 0
        if valid.sum() < 2:
            raise HuvrError(f"{', '.join(batch['name'])}: the views of training have not two pixels with a depth")
        predicted = self(images_of(batch), truth.shape[-2:])
        loss = sig_loss(predicted[valid], truth[valid], with_variance=self.global_step >= WITHOUT_VARIANCE)
        self.log("train/loss", loss.detach(), batch_size=len(truth), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.log("lr", optimizer.param_groups[0]["lr"])

    def on_validation_epoch_start(self) -> None:
        batches = self.trainer.num_test_batches if self.trainer.testing else self.trainer.num_val_batches
        self._every = max(1, int(sum(batches)) // PICTURED)
        self._tiles.clear()
        self.metrics.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, index: int) -> None:
        images, truth = images_of(batch), batch["target"]
        self._measure(batch, index, images, self(images, truth.shape[-2:]))

    def test_step(self, batch: Batch, index: int) -> None:
        images, size = images_of(batch), batch["target"].shape[-2:]
        if index == 0:
            self.details["bytes_per_image"] = self.encoder.stored_bytes(self.encoder(images))
        self._measure(batch, index, images, (self(images, size) + self(images.flip(-1), size).flip(-1)) / 2)

    def _measure(self, batch: Batch, index: int, images: Tensor, predicted: Tensor) -> None:
        truth, predicted = batch["target"], predicted.clamp(self.low, self.high)
        valid = self.valid(truth, batch["name"])
        self.metrics.update(predicted, truth, valid)
        if index % self._every == 0 and len(self._tiles) < PICTURED:
            self._tiles.append(tiles(images[0], truth[0], valid[0], predicted[0]))

    def valid(self, truth: Tensor, names: list[str]) -> Tensor:
        """Which pixels of the truth ``(B, H, W)`` count in tests, bool of its shape."""
        valid = (truth > self.low) & (truth < self.high)
        if self.mask:
            inside(self.mask, (truth.shape[1], truth.shape[2]), f"{names[0]}: mask")
            top, bottom, left, right = self.mask
            kept = torch.zeros_like(valid)
            kept[:, top:bottom, left:right] = valid[:, top:bottom, left:right]
            valid = kept
        for name in (name for name, some in zip(names, valid.flatten(1).any(1).tolist(), strict=True) if not some):
            raise HuvrError(f"{name}: no depth between {self.low:g} and {self.high:g} m inside of the mask")
        return valid

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.metrics.compute().items()}, sync_dist=True)
        self._show("val/depth")

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute(), sync_dist=True)
        self._show("depth", Path(self.trainer.default_root_dir) / "depth.png")

    def _show(self, name: str, path: Path | None = None) -> None:
        """Some of the images of the first process, in TensorBoard and in a file."""
        if not self.trainer.is_global_zero or self.trainer.sanity_checking:
            return
        alike = torch.cat([each for each in self._tiles if each.shape == self._tiles[0].shape])
        picture = to_uint8(make_grid(alike, nrow=3, padding=GAP, pad_value=1.0)[:, GAP:-GAP, GAP:-GAP])
        if isinstance(self.logger, TensorBoardLogger):
            self.logger.experiment.add_image(name, picture, self.global_step)
        if path:
            save_png(picture, path)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        steps = training_steps(self.trainer)
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, self.betas, weight_decay=self.weight_decay)
        return scheduled(optimizer, lambda step: one_cycle(step, steps, self.warmup_steps))

    def on_train_start(self) -> None:
        go_on_with(self, self.lr, weight_decay=self.weight_decay, betas=self.betas)


def one_cycle(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the greatest learning rate at an optimiser step, counted from 0 (DINOv3, eval/depth/schedulers.py).

    Half a cosine from 1 to 1 / 25000 over all steps; in the warm-up its part done, and 1 / 1000 more.
    """
    if step < warmup_steps:
        return 1 / 1000 + (1 + math.cos(math.pi * step / steps)) / 2 * step / warmup_steps
    return 1 / 25000 + (1 - 1 / 25000) * (1 + math.cos(math.pi * (step + 1) / steps)) / 2
