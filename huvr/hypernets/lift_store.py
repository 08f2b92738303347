"""The second stage of LIFT: the latents of a data set on the disk, and a classifier that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.commands.encode import token_columns, vectors
from huvr.errors import HuvrError
from huvr.files import whole
from huvr.hypernets.lift import Latents
from huvr.hypernets.lift_module import Batch, MetaLearning


class LatentWriter(Callback):
    """Writes what ``huvr predict`` finds to one Parquet file, a row per image or volume, whole or not at all.

    The columns grid_h, grid_w, cls and patches hold the tokens, see :meth:`huvr.hypernets.lift.LIFT.tokens`, under the names that
    ``huvr encode`` gives them: a sequence for a diffusion transformer, from which the INR can paint. ``latents`` holds the
    latents of all levels, flat, coarse to fine; ``label`` the class where there is one. All numbers are float16.

    Args:
        file: the file to write, below the run folder unless absolute.
    """

    def __init__(self, file: str = "latents.parquet") -> None:
        self.file = file
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, MetaLearning):
            raise HuvrError(f"LatentWriter writes the latents of LIFT, not what {type(pl_module).__name__} predicts")
        if trainer.world_size > 1:
            raise HuvrError(
                f"LatentWriter writes one file from one process, not from {trainer.world_size}: set trainer.devices 1"
            )
        self._writer = None
        self._temporary = self._stack.enter_context(whole(Path(trainer.default_root_dir) / self.file))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Latents,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        table = rows(pl_module, outputs, batch.get("label"))
        if self._writer is None:
            self._writer = self._stack.enter_context(pq.ParquetWriter(self._temporary, table.schema))
        self._writer.write_table(table)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writer is None:
            raise HuvrError("nothing to predict: the data have no held-out images")
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stack.__exit__(type(exception), exception, exception.__traceback__)


def rows(module: Any, latents: Latents, labels: Tensor | None) -> pa.Table:
    """The latents of a batch as rows of the file."""
    tokens = module.net.tokens(latents)
    columns: dict[str, Any] = {
        name: pa.array([side] * len(tokens.cls), pa.int32()) for name, side in zip(("grid_h", "grid_w"), tokens.grid, strict=True)
    }
    columns |= token_columns("", tokens) | {"latents": vectors(torch.cat([level.flatten(1) for level in latents], dim=1))}
    if labels is not None:
        columns["label"] = pa.array(labels.cpu().numpy())
    return pa.table(columns)


class LatentFile:
    """The latents and labels of a file that :class:`LatentWriter` wrote, read in pieces.

    Raises:
        HuvrError: where the file cannot be read, or has no latents or labels.
    """

    def __init__(self, file: str | Path) -> None:
        try:
            self.parquet = pq.ParquetFile(file, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise HuvrError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
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
