"""The second stage of LIFT: a classifier of latents that lie on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError, reason


class LatentFile:
    """The latents and labels of a file that :class:`~huvr.hypernets.lift_store.LatentWriter` wrote, read in pieces.

    Raises:
        HuvrError: where the file cannot be read, or has no latents or labels.
    """

    def __init__(self, file: str | Path) -> None:
        try:
            self.parquet = pq.ParquetFile(file, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise HuvrError(f"{file}: not a readable Parquet file ({reason(error)})") from None
        missing = {"latents", "label"} - set(self.parquet.schema_arrow.names)
        if missing:
            raise HuvrError(f"{file}: no column {' or '.join(sorted(missing))}; expected a file of latents of labelled images")
        self.dim: int = self.parquet.schema_arrow.field("latents").type.list_size

    def __len__(self) -> int:
        return self.parquet.metadata.num_rows

    def pieces(self, size: int = 8192) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents fp32 ``(n, dim)`` with labels int64 ``(n,)``, in order."""
        for batch in self.parquet.iter_batches(size, columns=["latents", "label"]):
            numbers = batch.column("latents").flatten().to_numpy(zero_copy_only=False)
            labels = np.array(batch.column("label"))
            yield torch.from_numpy(numbers.astype(np.float32)).view(-1, self.dim), torch.from_numpy(labels)


class LatentClassifier(nn.Module):
    """Latents ``(B, dim)`` to logits: standardised by the training latents, one hidden layer (ours, the paper has a VMamba)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, train: LatentFile, classes: int, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        total, squares = torch.zeros(train.dim, dtype=torch.float64), torch.zeros(train.dim, dtype=torch.float64)
        for latents, _ in train.pieces():
            total, squares = total + latents.double().sum(0), squares + latents.double().square().sum(0)
        mean = total / len(train)
        self.register_buffer("mean", mean.float())
        self.register_buffer("deviation", (squares / len(train) - mean.square()).clamp_min(1e-12).sqrt().float())
        self.layers = nn.Sequential(nn.Linear(train.dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, classes))

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers((latents - self.mean) / self.deviation)


def classify(train: LatentFile, test: LatentFile, epochs: int = 20, lr: float = 1e-3, batch_size: int = 256) -> float:
    """Train a classifier on the latents of one split; its top-1 accuracy on those of another, in per cent."""
    classes = 1 + max(int(labels.max()) for _, labels in train.pieces())
    model = LatentClassifier(train, classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for latents, labels in train.pieces():
            for chosen in torch.randperm(len(labels)).split(batch_size):
                loss = F.cross_entropy(model(latents[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = sum(int((model(latents).argmax(1) == labels).sum()) for latents, labels in test.pieces())
    return 100 * right / len(test)
