"""Logistic regression on cls tokens: how well a linear classifier tells them apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError

from .accuracy import Accuracy
from .base import EncoderConfig, FrozenEncoderTask
from .confusion import report
from .features import FeatureSplit


class Logistic(FrozenEncoderTask):
    """Logistic regression by L-BFGS on features of length one, without regularisation.

    The released HUVR's protocol for TinToks (trainers/reg_trainer.py). An epoch is one call of torch's L-BFGS, over all of
    the training split; when to stop and what to keep is up to the trainer's callbacks.

    Args:
        encoder: the frozen encoder.
        lr: length of an L-BFGS step.
        inner_steps: L-BFGS iterations in an epoch.
    """

    def __init__(self, encoder: EncoderConfig, lr: float = 0.1, inner_steps: int = 20) -> None:
        super().__init__(encoder)
        if lr <= 0 or inner_steps < 1:
            raise HuvrError(f"lr {lr}, inner_steps {inner_steps}: expected a positive lr and one step or more")
        self.lr, self.inner_steps = lr, inner_steps
        self.automatic_optimization = False

    def configure_model(self) -> None:
        if not hasattr(self, "head"):  # Lightning asks again before the test
            train = self.trainer.datamodule.train  # type: ignore[attr-defined]
            self.head = nn.Linear(train.dim, len(train.classes))

    def configure_optimizers(self) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(self.parameters(), lr=self.lr, max_iter=self.inner_steps)

    def training_step(self, batch: FeatureSplit, index: int) -> None:
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            """Mean loss over the split, and its gradient; only one piece is in memory at a time."""
            optimizer.zero_grad()
            total = torch.zeros((), device=self.device)
            for features, labels in batch.pieces():
                loss = F.cross_entropy(self(features), labels, reduction="sum") / len(batch)
                self.manual_backward(loss)
                total += loss.detach()
            return total

        loss = optimizer.step(closure=closure)
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(n, D)`` to logits ``(n, classes)``."""
        return self.head(F.normalize(features, dim=1))

    def validation_step(self, batch: FeatureSplit, index: int) -> None:
        self.log("val/top1", self._measured(batch).top1, batch_size=len(batch), prog_bar=True)

    def test_step(self, batch: FeatureSplit, index: int) -> None:
        accuracy = self._measured(batch)
        self.log_dict(accuracy.metrics(), batch_size=len(batch))
        report(self, accuracy, batch.classes)

    def _measured(self, batch: FeatureSplit) -> Accuracy:
        accuracy = Accuracy(len(batch.classes), self.device)
        for features, labels in batch.pieces():
            accuracy.add(self(features), labels)
        return accuracy
