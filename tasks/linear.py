"""Linear classification with the encoder in the loop: every epoch sees new crops of the images."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from huvr.data.loader import Batch, images_of
from huvr.errors import HuvrError
from huvr.optim import go_on_with, scheduled, training_steps

from .accuracy import Accuracy
from .augmented import Augmented
from .base import EncoderConfig, FrozenEncoderTask
from .confusion import report
from .linear_heads import Feature, Heads
from .storage import size_stored

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # DINOv3's, for 256 images a step


class Linear(FrozenEncoderTask):
    """Linear classifiers on the tokens of augmented images, by SGD; the best of several learning rates is tested.

    Two protocols: DINOv3's sweep of 13 learning rates in one pass over the data (eval/linear.py), the default, and
    the released HUVR's single head behind a BatchNorm (trainers/cls_trainer.py, models/head.py).

    Args:
        encoder: the frozen encoder.
        rates: learning rates, for 256 images a step; all heads are trained at once.
        momentum: of SGD; there is no weight decay.
        blocks: the cls tokens of how many blocks, from the last one back, a head sees.
        avgpool: whether it also sees the mean patch token of the last block.
        batch_norm: BatchNorm before the head; with one learning rate only.
        steps: (epochs, factor): every so many epochs the learning rate is multiplied by the factor. None lets it fall to
            zero along a cosine, step by step.

    Raises:
        HuvrError: for settings that do not fit, or data other than :class:`huvr.tasks.augmented.Augmented`.
    """

    best: Tensor

    def __init__(
        self,
        encoder: EncoderConfig,
        rates: tuple[float, ...] = RATES,
        momentum: float = 0.9,
        blocks: int = 1,
        avgpool: bool = True,
        batch_norm: bool = False,
        steps: tuple[int, float] | None = None,
    ) -> None:
        super().__init__(encoder)
        if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
            raise HuvrError(f"rates {tuple(rates)}: expected one positive learning rate or more, each once")
        if batch_norm and len(rates) > 1:
            raise HuvrError(f"batch_norm: with one learning rate only, not with {len(rates)}")
        if blocks < 1 or not 0 <= momentum < 1:
            raise HuvrError(f"blocks {blocks}, momentum {momentum}: expected 1 block or more, and 0 to below 1")
        if steps is not None and (steps[0] < 1 or not 0 < steps[1] <= 1):
            raise HuvrError(f"steps {tuple(steps)}: expected whole epochs, and a factor above 0 and up to 1")
        self.rates, self.momentum, self.batch_norm, self.steps = tuple(rates), momentum, batch_norm, steps
        self.feature = Feature(self.encoder, blocks, avgpool)
        self.register_buffer("best", torch.tensor(-1 if len(rates) > 1 else 0))  # -1: none chosen yet

    def setup(self, stage: str) -> None:
        data = self._data
        encoder = self.encoder.to(self.trainer.strategy.root_device)
        if encoder.config.components and encoder.pca is None:
            encoder.fit(encoder.look(images.to(encoder.device).float() / 255) for images in data.unaugmented())
        chosen: dict[str, Any] = {"train": data.train_rows, "select": data.val_rows}
        sources = chosen | dict(zip(("test", "objectnet"), (test.rows for test in data.tests), strict=False))
        self.details |= {
            "data": {name: f"{rows.source}, {len(rows)} images" for name, rows in sources.items()},
            "bytes_per_image": encoder.stored_bytes(encoder.look(torch.zeros(1, 3, data.size, data.size))),
            "bytes_of_feature": self.feature.dim // encoder.dim * size_stored(encoder.dim, encoder.config.stored),
        }

    def configure_model(self) -> None:
        if not hasattr(self, "heads"):  # Lightning asks again before the test
            self.heads = Heads(self.feature.dim, len(self._data.classes), self.rates, self.batch_norm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        length = training_steps(self.trainer)
        optimizer = torch.optim.SGD(self.parameters(), self.peak_lr(), self.momentum)
        if self.steps:
            every, factor = self.steps
            return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, lambda epoch: factor ** (epoch // every))}
        return scheduled(optimizer, lambda step: (1 + math.cos(math.pi * min(1.0, step / length))) / 2)

    def on_train_start(self) -> None:
        go_on_with(self, self.peak_lr(), momentum=self.momentum)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == TrainerFn.FITTING and any(
            "lr_lambdas" not in schedule for schedule in checkpoint.get("lr_schedulers", ())
        ):
            raise HuvrError("ckpt_path: of a huvr whose schedule was of another kind: begin anew in another --run")

    def peak_lr(self) -> float:
        """The greatest learning rate, for all images of a step; the heads weigh their losses for the others."""
        batch = self._data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return max(self.rates) * batch / 256

    def see(self, batch: Batch) -> Tensor:
        """The features ``(B, dim)`` of a batch."""
        return self.feature(images_of(batch))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] to the logits of the best head, ``(B, classes)``."""
        return self.heads(self.feature(images))[:, self.best]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        losses = self.heads.losses(self.see(batch), batch["label"])
        # A head whose learning rate is too great may leave the range of numbers, and harms no other.
        self.log("train/loss", losses.detach().nan_to_num(math.inf).min(), prog_bar=True)
        return self.heads.total(losses)

    def on_validation_epoch_start(self) -> None:
        self._right = torch.zeros(len(self.rates) + 1, dtype=torch.long, device=self.device)  # and how many there were

    def validation_step(self, batch: Batch, index: int) -> None:
        if batch:
            answers = self.heads(self.see(batch)).argmax(2)
            right = (answers == batch["label"][:, None]).sum(0)
            self._right += torch.cat([right, right.new_tensor([len(answers)])])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:  # of heads that have learned nothing
            return
        counts = self.trainer.strategy.reduce(self._right, reduce_op="sum").tolist()
        shares = [100 * right / counts[-1] for right in counts[:-1]]
        self.best.fill_(shares.index(max(shares)))
        self.log("val/top1", max(shares), prog_bar=True, sync_dist=True)  # the same everywhere already
        self.details["heads"] = {f"{rate:g}": share for rate, share in zip(self.rates, shares, strict=True)}

    def on_test_epoch_start(self) -> None:
        if self.best < 0:
            raise HuvrError(
                "no learning rate was chosen, since training ended before a validation: train an epoch, or set "
                "trainer.val_check_interval"
            )
        self._accuracy = Accuracy(len(self._data.classes), self.device)
        self._within = torch.zeros(len(self._data.tests), 2, dtype=torch.long, device=self.device)  # right, counted

    def test_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        if not batch:
            return
        logits = self(images_of(batch))
        if dataloader_idx == 0:
            self._accuracy.add(logits, batch["label"])
        if "answers" in batch:
            right = batch["answers"].gather(1, logits.argmax(1, keepdim=True))
            self._within[dataloader_idx] += torch.stack([right.sum(), batch["answers"].any(1).sum()])

    def on_test_epoch_end(self) -> None:
        self._accuracy.reduce(self.trainer.strategy)
        within = self.trainer.strategy.reduce(self._within, reduce_op="sum").tolist()
        counts = zip(("real", "objectnet"), within, strict=False)
        others = {name: 100 * right / counted for name, (right, counted) in counts if counted}
        self.log_dict(self._accuracy.metrics() | others, sync_dist=True)
        self.details["best_rate"] = self.rates[int(self.best)]
        report(self, self._accuracy, self._data.classes)

    @property
    def _data(self) -> Augmented:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, Augmented):
            raise HuvrError(f"data: a linear task needs huvr.tasks.augmented.Augmented, not {type(data).__name__}")
        return data
