"""The latents that LIFT finds, on the disk."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from huvr.data.loader import Batch
from huvr.errors import HuvrError
from huvr.files import whole
from huvr.hypernets.lift import Latents
from huvr.hypernets.lift_module import MetaLearning
from huvr.parquet import token_columns, vectors


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
