"""Occupancy grids of solids made by code. They stand in for a data set of real shapes and are none: not ShapeNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from huvr.data.loader import Batch, Draws, Loader, TrainLoader, held_out_batches
from huvr.data.module import ResumableData
from huvr.data.samples import Draw
from huvr.errors import HuvrError

LEAST_SIDE = 16  # below, the thinnest solids could slip between the voxels
SPLITS = {"train": 0, "validation": 1}
Array = np.ndarray


def ball(points: Array, rng: np.random.Generator) -> Array:
    """Radius 0.2 to 0.5."""
    return (points**2).sum(-1) <= rng.uniform(0.2, 0.5) ** 2


def box(points: Array, rng: np.random.Generator) -> Array:
    """Edges of 0.3 to 0.9."""
    return (np.abs(points) <= rng.uniform(0.15, 0.45, 3)).all(-1)


def torus(points: Array, rng: np.random.Generator) -> Array:
    """Around the last axis: a ring of radius 0.25 to 0.4, 0.11 to 0.18 thick."""
    ring, tube = rng.uniform(0.25, 0.4), rng.uniform(0.11, 0.18)
    return (np.hypot(points[..., 0], points[..., 1]) - ring) ** 2 + points[..., 2] ** 2 <= tube**2


PRIMITIVES: tuple[Callable[[Array, np.random.Generator], Array], ...] = (ball, box, torus)


def solid(side: int, rng: np.random.Generator) -> Array:
    """A union of one to three balls, boxes and tori in random pose, at the voxels of (-1, 1)³: bool ``(side, side, side)``."""
    centres = (np.arange(side) + 0.5) * (2 / side) - 1
    grid = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1)
    occupied = np.zeros((side,) * 3, dtype=bool)
    for _ in range(rng.integers(1, 4)):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        primitive = PRIMITIVES[rng.integers(len(PRIMITIVES))]
        occupied |= primitive((grid - rng.uniform(-0.35, 0.35, 3)) @ rotation, rng)
    return occupied


class SolidSet(Dataset):
    """``count`` solids of a split, by number or as training draws them; each follows from seed, split and its number alone."""

    def __init__(self, split: str, count: int, side: int, seed: int) -> None:
        self.split, self.count, self.side, self.seed = split, count, side, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | Draw) -> dict[str, Tensor]:
        number = index.row if isinstance(index, Draw) else index
        rng = np.random.default_rng((self.seed, SPLITS[self.split], number))
        return {"voxels": torch.from_numpy(solid(self.side, rng))[None].to(torch.uint8)}


class Solids(ResumableData):
    """Solids made by code, as batches ``{"voxels": uint8 (B, 1, side, side, side)}`` of 0 and 1.

    Args:
        side: voxels along each axis.
        train, validation: how many solids of each split.
        batch_size: solids per batch and device.
        workers: processes that make them, per device.
        seed: of the solids, and of their order in training.

    Raises:
        HuvrError: for numbers that make no sense.
    """

    def __init__(
        self, side: int = 64, train: int = 4096, validation: int = 256, batch_size: int = 16, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if side < LEAST_SIDE or min(train, validation, batch_size) < 1 or min(workers, seed) < 0:
            raise HuvrError(
                f"side {side}, train {train}, validation {validation}, batch_size {batch_size}, workers {workers}, seed {seed}: "
                f"expected a side of {LEAST_SIDE} or more, 0 or more for workers and seed, else 1 or more"
            )
        if batch_size > train:
            raise HuvrError(f"batch_size {batch_size} is more than the {train} solids to train on")
        self.sets = {name: SolidSet(name, count, side, seed) for name, count in (("train", train), ("validation", validation))}
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> TrainLoader:
        """One epoch of complete batches."""
        rank, world = self._rank
        count = len(self.sets["train"])
        if count < self._step:
            raise HuvrError(f"batch_size {self.batch_size} on {world} device(s) is more than the {count} solids to train on")
        draws = Draws(count, count, [(0, 0)], self.batch_size, self.seed, rank, world)
        return self.resumable(self._batches("train", sampler=draws, drop_last=True), draws, count // self._step)

    def val_dataloader(self) -> Loader:
        order = held_out_batches(len(self.sets["validation"]), self.batch_size, *self._rank)
        return Loader(self._batches("validation", batch_size=1, batch_sampler=order))

    test_dataloader = predict_dataloader = val_dataloader

    def _batches(self, split: str, **options: Any) -> DataLoader:
        options = {"batch_size": self.batch_size} | options
        return DataLoader(self.sets[split], num_workers=self.workers, collate_fn=readable, **options)


def readable(solids: list[dict[str, Tensor]]) -> tuple[Batch, list[str]]:
    """A batch, and nothing that would be wrong with it."""
    return default_collate(solids), []
