"""Semantic segmentation by a linear layer on the patch tokens: DINOv3's protocol."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from huvr.data.loader import Batch, images_of
from huvr.data.samples import seed_of
from huvr.errors import HuvrError
from huvr.optim import go_on_with, scheduled, training_steps, warmup_cosine
from huvr.viz import save_png

from . import overlays
from .base import EncoderConfig, FrozenEncoderTask, cut
from .labels import NO_LABEL, Labels
from .sliding import at_pixels, check_window, slide

ZeroLabel = Literal["kept", "ignored"]
PICTURES = 4  # test images to be drawn


class Segmentation(FrozenEncoderTask):
    """Semantic segmentation: one linear layer on the patch tokens.

    Dropout, BatchNorm and a 1×1 convolution on the tokens as a map; cross entropy at every pixel of the crop, to which the
    logits are enlarged bilinearly. An image is segmented in windows, see :func:`huvr.tasks.sliding.slide`, and the averaged
    logits are brought to the size of its mask (DINOv3, eval/segmentation). The encoder sees every augmented crop anew.

    mIoU is the mean over classes of intersections over unions summed over all images; classes that neither masks nor
    predictions have are left out.

    Args:
        encoder: the frozen encoder.
        classes: how many there are, or their names.
        ignore: the number in masks of pixels that do not count.
        zero_label: "ignored" where 0 in masks is no class and 1 is the first (ADE20K), else "kept".
        window: side in pixels of the windows; shorter sides of images are taken whole.
        stride: pixels from one window to the next.
        lr, weight_decay: of AdamW.
        warmup: steps until the learning rate is reached; it falls to 0 along a cosine afterwards.
    """

    headline = "miou"

    def __init__(
        self,
        encoder: EncoderConfig,
        classes: int | list[str],
        ignore: int = 255,
        zero_label: ZeroLabel = "kept",
        window: int = 512,
        stride: int = 341,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        warmup: int = 1500,
    ) -> None:
        super().__init__(encoder)
        self.names = classes if isinstance(classes, list) else [str(number) for number in range(classes)]
        if len(self.names) < 2 or len({*self.names}) < len(self.names):
            raise HuvrError(f"classes {classes}: expected two or more, each name once")
        if zero_label not in get_args(ZeroLabel):
            raise HuvrError(f"zero_label {zero_label!r}: choose one of {', '.join(get_args(ZeroLabel))}")
        if lr <= 0 or weight_decay < 0 or warmup < 0:
            raise HuvrError(
                f"lr {lr}, weight_decay {weight_decay}, warmup {warmup}: expected a positive lr, the others 0 or more"
            )
        check_window(window, stride, self.encoder)
        self.window, self.stride = window, stride
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.read_target = Labels(len(self.names), ignore, zero_label == "ignored")
        self.head = linear_head(self.encoder.dim, len(self.names))
        self.bytes_seen = self.images_seen = 0  # stored tokens of all windows, in the test
        self.confusion = MulticlassConfusionMatrix(len(self.names), ignore_index=NO_LABEL, validate_args=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        steps = training_steps(self.trainer)
        optimizer = torch.optim.AdamW(self.head.parameters(), self.lr, weight_decay=self.weight_decay)
        return scheduled(optimizer, partial(warmup_cosine, steps=steps, warmup_steps=self.warmup))

    def on_train_start(self) -> None:
        go_on_with(self, self.lr, weight_decay=self.weight_decay)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] to logits ``(B, classes, H, W)``."""
        tokens = self.encoder(images)
        self.bytes_seen += self.encoder.stored_bytes(tokens)
        return at_pixels(self.head(tokens.map), images.shape[-2:], *cut(self.encoder.network))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        # For dropout: a resumed run drops what it would have, and each process its own.
        torch.manual_seed(seed_of("dropout", self.global_step, index, self.global_rank))
        logits, labels = self(images_of(batch)), batch["target"]
        # The mean over labelled pixels; torch's own is nan where there are none.
        loss = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / (labels != NO_LABEL).sum().clamp_min(1)
        self.log("train/loss", loss, batch_size=len(batch["target"]), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.confusion.update(self.segment(batch), batch["target"])

    def on_validation_epoch_end(self) -> None:
        self.log("val/miou", scores(self.confusion.compute())[0], prog_bar=True, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()
        self.images_seen = self.bytes_seen = 0
        self.pictures: list[Tensor] = []

    def test_step(self, batch: Batch, index: int) -> None:
        prediction = self.segment(batch)
        self.confusion.update(prediction, batch["target"])
        self.images_seen += len(prediction)
        if self.trainer.is_global_zero and len(self.pictures) < PICTURES:
            self.pictures.append(overlays.row(batch["image"][0], batch["target"][0], prediction[0]))

    def on_test_epoch_end(self) -> None:
        miou, accuracy, per_class = scores(self.confusion.compute())
        self.log_dict({"miou": miou, "pixel_accuracy": accuracy}, sync_dist=True)
        seen = torch.tensor([self.bytes_seen, self.images_seen], device=self.device)
        total, images = self.trainer.strategy.reduce(seen, reduce_op="sum").tolist()
        per_name = {name: None if math.isnan(iou) else iou for name, iou in zip(self.names, per_class.tolist(), strict=True)}
        self.details |= {"bytes_per_image": round(total / images), "iou_per_class": per_name}
        if self.pictures:
            picture = overlays.stacked(self.pictures)
            save_png(picture, Path(self.trainer.default_root_dir) / "segmentation.png")
            if isinstance(self.logger, TensorBoardLogger):
                self.logger.experiment.add_image("segmentation", picture, self.global_step)

    def segment(self, batch: Batch) -> Tensor:
        """Labels ``(B, H, W)`` of images, in the size of their targets."""
        logits = slide(images_of(batch), self.window, self.stride, self)
        return F.interpolate(logits, batch["target"].shape[-2:], mode="bilinear").argmax(1)


def linear_head(dim: int, classes: int) -> nn.Sequential:
    """Tokens ``(B, dim, h, w)`` to logits ``(B, classes, h, w)`` (DINOv3, eval/segmentation/models/heads/linear_head.py)."""
    last = nn.Conv2d(dim, classes, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Dropout2d(0.1), nn.BatchNorm2d(dim), last)


def scores(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mIoU, pixel accuracy, and the IoU of each class ``(C,)``, in per cent.

    Args:
        confusion: pixels by class and by answer, ``(C, C)``, of all images together.

    Returns:
        The IoU of a class that is neither there nor an answer is nan, and is left out of the mean.
    """
    confusion = confusion.cpu().double()
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    return 100 * (right / union).nanmean(), 100 * right.sum() / confusion.sum(), 100 * right / union
