"""Principal components of tokens: the baseline of TinToks at equal size."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Sums over tokens ``(N, D)`` that come piece by piece and never lie in memory together."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self.count = 0
        self.total = torch.zeros(dim, dtype=torch.float64, device=device)
        self.products = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, tokens: Tensor) -> None:
        tokens = tokens.double()
        self.count += len(tokens)
        self.total += tokens.sum(0)
        self.products += tokens.T @ tokens


class PCA:
    """``(…, D)`` to its ``dim`` leading principal components, mean removed."""

    def __init__(self, moments: Moments, dim: int) -> None:
        count = max(moments.count, 1)
        mean = moments.total / count
        covariance = moments.products / count - torch.outer(mean, mean)
        basis = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :dim]  # eigenvalues come in rising order
        self.mean, self.basis = mean.float(), basis.float()

    def __call__(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) @ self.basis
