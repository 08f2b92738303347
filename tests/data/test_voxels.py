"""Solids made by code: what is inside of them, and that each follows from seed, split and number alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from huvr.data.voxels import PRIMITIVES, Solids, SolidSet, ball, box, solid, torus
from huvr.errors import HuvrError


def centres(side: int) -> np.ndarray:
    axis = (np.arange(side) + 0.5) * 2 / side - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


class Fixed:
    """Stands for a generator; gives the middle of what is asked for."""

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        middle = (low + high) / 2
        return middle if size is None else np.full(size, middle)


@pytest.mark.parametrize(
    ("primitive", "volume"),
    [(ball, 4 / 3 * np.pi * 0.35**3), (box, 0.6**3), (torus, 2 * np.pi**2 * 0.325 * 0.145**2)],
)
def test_their_volumes_are_those_of_geometry(primitive: Any, volume: float) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))  # faces along the grid would round the same way
    inside = primitive(centres(64) @ turn, Fixed())
    assert inside.mean() * 8 == pytest.approx(volume, rel=0.04)


def test_none_is_empty_or_touches_the_border() -> None:
    assert len(PRIMITIVES) == 3
    for number in range(40):
        occupied = solid(16, np.random.default_rng(number))
        assert 0.001 < occupied.mean() < 0.6


def test_each_follows_from_seed_split_and_number() -> None:
    first = [SolidSet("train", 4, 16, 0)[number]["voxels"] for number in range(4)]
    assert all(torch.equal(SolidSet("train", 9, 16, 0)[number]["voxels"], first[number]) for number in range(4))
    others = [SolidSet("validation", 4, 16, 0)[0]["voxels"], SolidSet("train", 4, 16, 1)[0]["voxels"], *first[1:]]
    assert not any(torch.equal(other, first[0]) for other in others)


def test_batches() -> None:
    data = Solids(side=16, train=5, validation=3, batch_size=2)
    batches = list(data.train_dataloader())
    assert [batch["voxels"].shape for batch in batches] == [(2, 1, 16, 16, 16)] * 2
    held_out = torch.cat([batch["voxels"] for batch in data.val_dataloader()])
    assert held_out.shape == (3, 1, 16, 16, 16)
    assert held_out.dtype == torch.uint8
    assert held_out.unique().tolist() == [0, 1]


def volumes(batches: Iterable[dict[str, torch.Tensor]]) -> list[tuple[int, ...]]:
    """Occupied voxels of the solids of each batch."""
    return [tuple(batch["voxels"].flatten(1).sum(1).tolist()) for batch in batches]


def together(*batches: tuple[int, ...]) -> list[int]:
    return sorted(chain(*batches))


def test_training_goes_on_in_the_middle_of_an_epoch_and_each_has_an_order_of_its_own() -> None:
    def epoch(data: Solids, number: int) -> Iterable[dict[str, torch.Tensor]]:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return loader

    whole, broken, resumed = (Solids(side=16, train=9, batch_size=2) for _ in range(3))
    first, second = (volumes(epoch(whole, number)) for number in (0, 1))
    assert first != second
    assert len({*chain(*first, *second)}) <= 9
    assert volumes(islice(epoch(broken, 1), 2)) == second[:2]
    resumed.load_state_dict(broken.state_dict())
    torch.manual_seed(5)  # nothing hangs on it
    assert volumes(epoch(resumed, 1)) == second[2:]


def test_two_processes_share_the_solids_and_measure_each_once() -> None:
    ranks = []
    for rank in range(2):
        data = Solids(side=16, train=8, validation=5, batch_size=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, fit_loop=None)  # type: ignore[assignment]
        ranks.append((volumes(data.train_dataloader()), volumes(data.val_dataloader())))
    alone = Solids(side=16, train=8, validation=5, batch_size=4)
    (first, measured), (second, too) = ranks
    steps = [together(*pair) for pair in zip(first, second, strict=True)]
    assert steps == [together(each) for each in volumes(alone.train_dataloader())]
    assert together(*measured, *too) == together(*volumes(alone.val_dataloader()))


@pytest.mark.parametrize("changes", [{"side": 15}, {"train": 0}, {"batch_size": 0}, {"workers": -1}, {"seed": -1}])
def test_numbers_that_make_no_sense(changes: dict[str, int]) -> None:
    with pytest.raises(HuvrError, match=f"{next(iter(changes))} -?[0-9]+"):
        Solids(**changes)  # type: ignore[arg-type]
    with pytest.raises(HuvrError, match="batch_size 9 is more than the 8 solids"):
        Solids(train=8, batch_size=9)
