"""Trainings that a benchmark compares: the same crops and the same Trainer for all, and a store to go on from when broken off."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import COMMIT, random_crops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from huvr.commands.calm import calm
from huvr.files import whole

Precision = Literal["32-true", "bf16-mixed"]
CLIP = 1.0  # norm of the gradients at most

calm()
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it announces each of many trainings


class Crops(IterableDataset):
    """Random square crops of uint8 pictures without end; the same seed gives the same ones, in the same order."""

    def __init__(self, pictures: list[Tensor], size: int, seed: int) -> None:
        self.pictures, self.size, self.seed = pictures, size, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = np.random.default_rng(self.seed)
        while True:
            yield {"image": random_crops(self.pictures, 1, self.size, rng)[0]}


class Curve(Callback):
    """Keeps the held-out PSNR of every validation, with the step it was made at."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.points.append((trainer.global_step, round(trainer.callback_metrics["val/psnr"].item(), 3)))


def fit(
    module: LightningModule, crops: Crops, test: Tensor, steps: int, batch: int, points: int = 1, precision: Precision = "32-true"
) -> list[tuple[int, float]]:
    """Train ``module``, which then is in eval mode and on the CPU.

    Args:
        module: takes batches ``{"image": (B, 3, H, W)}`` and logs val/psnr, as those of huvr do.
        crops: to train on.
        test: images ``(N, 3, H, W)`` in [0, 1] to measure on.
        steps: of the optimiser.
        batch: images of each.
        points: how often to measure on the way; the last time is the end.
        precision: of Lightning's Trainer.

    Returns:
        (step, PSNR in dB) of each measurement.
    """
    curve, off = Curve(), dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        max_steps=steps, val_check_interval=max(1, steps // points), check_val_every_n_epoch=None, num_sanity_val_steps=0,
        gradient_clip_val=CLIP, devices=1, precision=precision, callbacks=[curve], **off,  # type: ignore[arg-type]
    )  # fmt: skip
    held_out = DataLoader([{"image": image} for image in test], batch)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(crops, batch), held_out)
    if not curve.points or curve.points[-1][0] != steps:
        trainer.validate(module, held_out, verbose=False)
    module.eval().cpu()
    return curve.points


class Finished:
    """Results by name, each written down as soon as it is there: a benchmark started again goes on where it was broken off.

    Args:
        folder: where the record will be; until :meth:`close` the results lie there in ``<name>.json.partial``.
        name: of the record.
        settings: all that decides about the results.

    Raises:
        SystemExit: where a benchmark with other settings was broken off.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.path, settings = folder / f"{name}.json.partial", json.loads(json.dumps(settings))
        folder.mkdir(parents=True, exist_ok=True)
        self.content = {"settings": settings, "commit": COMMIT, "results": {}}
        if self.path.exists():
            self.content = json.loads(self.path.read_text())
        if self.content["settings"] != settings:
            raise SystemExit(f"{self.path} was begun with {self.content['settings']}: go on with these, or remove the file")

    @property
    def begun_at(self) -> str:
        """The commit of the first start."""
        return self.content["commit"]

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name, made where it is not there yet; plain values, as JSON has them."""
        results = self.content["results"]
        if name not in results:
            results[name] = json.loads(json.dumps(make()))
            with whole(self.path) as temporary:
                temporary.write_text(json.dumps(self.content, indent=1))
            print(name, results[name], flush=True)
        return results[name]

    def close(self) -> None:
        """Remove the file, once the record is written."""
        self.path.unlink(missing_ok=True)
