"""Accuracy of a classifier, added up over the pieces of a split."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from huvr.errors import HuvrError

CONFUSED_CLASSES = 1000  # the square of more would be no small thing


class Accuracy:
    """Top-1, top-5 and per-class accuracy, in per cent, and who is taken for whom.

    Args:
        classes: how many there are.
        device: where the scores come from.

    Attributes:
        confusion: images by class (rows) and by answer (columns); None for more than ``CONFUSED_CLASSES`` classes.

    Raises:
        HuvrError: for fewer than two classes.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        if classes < 2:
            raise HuvrError(f"{classes} class: there is nothing to tell apart; a classifier needs 2 classes or more")
        self.images = torch.zeros(classes, dtype=torch.long, device=device)
        self.right = torch.zeros(2, classes, dtype=torch.long, device=device)
        confused = classes <= CONFUSED_CLASSES
        self.confusion = torch.zeros(classes, classes, dtype=torch.long, device=device) if confused else None

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Scores ``(n, classes)``, the greatest being the answer, and labels ``(n,)``."""
        classes = len(self.images)
        best = scores.topk(min(5, classes)).indices
        self.images += labels.bincount(minlength=classes)
        for right, hits in zip(self.right, (best[:, 0] == labels, (best == labels[:, None]).any(1)), strict=True):
            right += labels[hits].bincount(minlength=classes)
        if self.confusion is not None:
            self.confusion += (labels * classes + best[:, 0]).bincount(minlength=classes**2).view(classes, classes)

    def reduce(self, strategy: Strategy) -> None:
        """Add up the counts of all processes."""
        self.images, self.right = (strategy.reduce(count, reduce_op="sum") for count in (self.images, self.right))
        if self.confusion is not None:
            self.confusion = strategy.reduce(self.confusion, reduce_op="sum")

    @property
    def top1(self) -> float:
        return self._share(0)

    @property
    def top5(self) -> float:
        return self._share(1)

    @property
    def mean_per_class(self) -> float:
        """Top-1 of each class that has images, averaged: rare classes count as much as frequent ones."""
        shares = [share for share in self.per_class() if share is not None]
        return sum(shares) / len(shares)

    def per_class(self) -> list[float | None]:
        """Top-1 of each class; None for one without images."""
        pairs = zip(self.right[0].tolist(), self.images.tolist(), strict=True)
        return [100 * right / images if images else None for right, images in pairs]

    def metrics(self) -> dict[str, float]:
        """What a task logs: with five classes or fewer, top-5 would say nothing."""
        top5 = {"top5": self.top5} if len(self.images) > 5 else {}
        return {"top1": self.top1, **top5, "mean_per_class": self.mean_per_class}

    def _share(self, which: int) -> float:
        return 100 * self.right[which].sum().item() / self.images.sum().item()
