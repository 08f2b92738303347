"""What ``huvr predict`` leaves: a picture of each held-out image."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from huvr.errors import HuvrError
from huvr.viz import save_png, to_uint8

FOLDER = "predictions"


class PictureWriter(Callback):
    """Writes the pictures ``(B, 3, H, W)`` in [0, 1] that a module predicts to ``RUN/predictions/000012.png``.

    The number is that of the image in its split, from 0 on; of a stream, images of one process count by turns with those of the
    others. Pictures of an earlier call go.

    Raises:
        HuvrError: where the module predicts something else.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder, self.seen = Path(trainer.default_root_dir) / FOLDER, 0
        if trainer.is_global_zero:
            for old in self.folder.glob("*.png"):
                old.unlink()
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not (isinstance(outputs, Tensor) and outputs.ndim == 4 and outputs.shape[1] == 3):
            raise HuvrError(f"{type(pl_module).__name__} predicts no pictures: trainer.callbacks needs one that writes it")
        rows = getattr(trainer.datamodule, "val_rows", None)  # type: ignore[attr-defined]
        for picture in to_uint8(outputs):
            number = trainer.global_rank + trainer.world_size * self.seen
            if not isinstance(rows, Sized) or number < len(rows):  # processes without an image of their own look at others' again
                save_png(picture, self.folder / f"{number:06d}.png")
            self.seen += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"pictures of the held-out images: {self.folder}")
