"""The order of training samples."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections import Counter
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from huvr.data.loader import Draws, Loader, outlast
from huvr.data.samples import Draw
from huvr.errors import HuvrError

SIZES = [(32, 32), (24, 40), (40, 24)]


def draws(images: int = 20, epoch_size: int = 20, batch: int = 2, seed: int = 0, rank: int = 0, world: int = 1) -> Draws:
    return Draws(images, epoch_size, SIZES, batch, seed, rank, world)


def of_epoch(sampler: Draws, epoch: int) -> list[Draw]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_takes_every_image_once() -> None:
    assert sorted(draw.row for draw in draws()) == list(range(20))


def test_a_long_epoch_takes_every_image_equally_often() -> None:
    counts = Counter(draw.row for draw in draws(images=7, epoch_size=24))
    assert sum(counts.values()) == 24
    assert set(counts.values()) == {3, 4}


def test_ranks_share_the_epoch_without_overlap() -> None:
    ranks = [[draw.row for draw in draws(rank=rank, world=3)] for rank in range(3)]
    assert [len(rows) for rows in ranks] == [6, 6, 6]
    assert len({row for rows in ranks for row in rows}) == 18


def test_a_step_has_the_same_samples_however_many_ranks_share_it() -> None:
    alone = list(draws(batch=4))
    first, second = (list(draws(batch=2, rank=rank, world=2)) for rank in range(2))
    for step in range(5):
        assert set(alone[4 * step : 4 * step + 4]) == {*first[2 * step : 2 * step + 2], *second[2 * step : 2 * step + 2]}


def test_a_batch_has_one_size_which_all_ranks_share_and_all_sizes_occur() -> None:
    ranks = [list(draws(images=200, epoch_size=200, rank=rank, world=2)) for rank in range(2)]
    sizes = [[{draw.size for draw in rank[start : start + 2]} for start in range(0, 100, 2)] for rank in ranks]
    assert sizes[0] == sizes[1]
    assert all(len(batch) == 1 for batch in sizes[0])
    counts = Counter(size for batch in sizes[0] for size in batch)
    assert set(counts) == set(SIZES)
    assert min(counts.values()) > 5


@pytest.mark.parametrize("what", ["row", "seed", "size"])
def test_seed_and_epoch_decide_on_everything(what: str) -> None:
    def drawn(seed: int, epoch: int) -> list[object]:
        return [getattr(draw, what) for draw in of_epoch(draws(200, 200, seed=seed), epoch)]

    assert drawn(0, 1) == drawn(0, 1)
    assert drawn(0, 1) != drawn(0, 2)
    assert drawn(0, 1) != drawn(1, 1)


def test_no_two_crops_share_a_seed() -> None:
    sampler = draws(images=5, epoch_size=1000)
    assert len({draw.seed for epoch in range(3) for draw in of_epoch(sampler, epoch)}) == 3000


def test_starting_later_gives_the_rest_of_the_epoch() -> None:
    whole, rest = draws(), draws()
    rest.start = 3
    assert of_epoch(rest, 4) == of_epoch(whole, 4)[6:]


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise HuvrError("x.png: what is wrong")


def test_an_error_in_a_worker_stays_one_line() -> None:
    with pytest.raises(HuvrError, match=r"^x\.png: what is wrong$"):
        list(Loader(DataLoader(Broken(), num_workers=1)))


def waiting(ready: Any) -> None:
    outlast(0)
    ready.set()
    time.sleep(60)


def test_a_worker_is_terminated_by_its_parent_alone() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=waiting, args=(ready,))
    worker.start()
    assert ready.wait(10)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
