"""Accuracy of a classifier, added up over the pieces of a split."""

from __future__ import annotations

import torch
from torch import Tensor


class Accuracy:
    """Top-1, top-5 and per-class accuracy, in per cent.

    Args:
        classes: how many there are; with fewer than five, top-5 is top of them all.
        device: where the scores come from.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.images = torch.zeros(classes, dtype=torch.long, device=device)
        self.right = torch.zeros(2, classes, dtype=torch.long, device=device)

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Scores ``(n, classes)``, the greatest being the answer, and labels ``(n,)``."""
        best = scores.topk(min(5, len(self.images))).indices
        self.images += labels.bincount(minlength=len(self.images))
        for right, hits in zip(self.right, (best[:, 0] == labels, (best == labels[:, None]).any(1)), strict=True):
            right += labels[hits].bincount(minlength=len(self.images))

    @property
    def top1(self) -> float:
        return self._share(0)

    @property
    def top5(self) -> float:
        return self._share(1)

    def per_class(self) -> list[float | None]:
        """Top-1 of each class; None for one without images."""
        pairs = zip(self.right[0].tolist(), self.images.tolist(), strict=True)
        return [100 * right / images if images else None for right, images in pairs]

    def _share(self, which: int) -> float:
        return 100 * self.right[which].sum().item() / self.images.sum().item()
