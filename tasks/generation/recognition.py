"""Whether pictures are recognised as their class, by a classifier that has learned from real ones alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .measures import pieces_of

ITERATIONS = 200


class Classifier(nn.Module):
    """Logistic regression on features of length one, by L-BFGS without regularisation, as :mod:`huvr.tasks.logistic`.

    Args:
        features: of real pictures, ``(rows, D)``, read piece by piece.
        labels: int64 ``(rows,)``.
        classes: how many.
        device: where to learn.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int, device: torch.device) -> None:
        super().__init__()
        with torch.inference_mode(False), torch.enable_grad():  # Lightning tests without gradients
            self.head = nn.Linear(features.shape[1], classes, device=device)
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)
            self._learn(features, labels, device)
        self.requires_grad_(False)

    def _learn(self, features: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        optimizer = torch.optim.LBFGS(self.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            total, first = torch.zeros((), device=device), 0
            for piece in pieces_of(features):
                wanted = torch.from_numpy(labels[first : first + len(piece)]).to(device)
                loss = F.cross_entropy(self(piece.to(device)), wanted, reduction="sum") / len(labels)
                loss.backward()
                total, first = total + loss.detach(), first + len(piece)
            return total

        optimizer.step(closure)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(n, D)`` to logits ``(n, classes)``."""
        return self.head(F.normalize(features, dim=1))
