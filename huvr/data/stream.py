"""Samples of a source that is read row by row, so that nothing need fit on the disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import datasets
from torch.utils.data import IterableDataset, get_worker_info

from huvr.data.samples import Found, Sample, Size, View, decode, seed_of, size_of
from huvr.errors import HuvrError, reason

SHUFFLE_BUFFER = 1024  # encoded images in memory, per worker
PATIENCE = 1000  # corrupt images one after another


def unbroken(rows: Iterable[dict[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream; a shard that is gone, cut off or out of reach ends it with a HuvrError."""
    try:
        yield from rows
    except HuvrError:
        raise
    except Exception as error:  # any of those of datasets, pyarrow, fsspec and the hub
        raise HuvrError(f"{source}: a shard of this stream cannot be read ({reason(error)})") from error


def readable(rows: Iterable[dict[str, Any]], source: str) -> Iterator[Found]:
    """As many images as rows, the next readable one in place of each that is corrupt; what is wrong with a shard is an error."""
    skipped: list[str] = []
    for row in unbroken(rows, source):
        try:
            image = decode(row, f"{source}: an image of the stream")
        except HuvrError as error:
            skipped.append(str(error))
            if len(skipped) == PATIENCE:
                raise HuvrError(f"{source}: {PATIENCE} unreadable images in a row, the first being {skipped[0]}") from error
            continue
        yield Found(image, row, skipped)
        yield from (Found(image, row, []) for _ in skipped)
        skipped = []
    if skipped:  # no readable image comes after them
        warnings.warn(f"{source}: images at the end of the stream skipped: {'; '.join(skipped)}", stacklevel=2)


class HeldOutStream(IterableDataset[Sample]):
    """One pass through a stream, each image seen at its middle."""

    def __init__(self, rows: Iterable[dict[str, Any]], size: int, source: str) -> None:
        self.rows, self.size, self.source = rows, size, source

    def __iter__(self) -> Iterator[Sample]:
        for found in readable(self.rows, self.source):
            yield found.middle(self.size)


class TrainStream(IterableDataset[Sample]):
    """Endless random crops; the shards and a buffer of rows are shuffled anew on every pass.

    The samples are a pure function of (seed, epoch, rank, number of workers): ``datasets`` divides the
    shards among ranks and workers. Resuming reads the rows already used once more, without decoding them.

    Args:
        rows: those of this rank.
        sizes: (H, W) to choose from, one a batch.
        view: the random crop for a size.
        batch_size: samples per batch on this rank.
        seed: of order, crops and sizes.
        rank: this process among all that train together.
        source: what errors call the rows.
    """

    def __init__(
        self, rows: datasets.IterableDataset, sizes: Sequence[Size], view: View, batch_size: int,
        seed: int, rank: int, source: str,
    ) -> None:  # fmt: skip
        self.rows, self.sizes, self.view, self.batch_size = rows, sizes, view, batch_size
        self.seed, self.rank, self.source = seed, rank, source
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Batches come from the workers in turn, beginning with the first: all leave out the same number.
        first = self.start // workers * self.batch_size
        rows = islice(self._passes(), first, None)
        for place, found in enumerate(readable(rows, self.source), start=first):
            size = size_of(self.sizes, self.seed, self.epoch, place // self.batch_size * workers + number)
            yield found.crop(seed_of("crop", self.seed, self.epoch, self.rank, number, place), size, self.view)

    def _passes(self) -> Iterator[dict[str, Any]]:
        for turn in count():
            row = None
            for row in self.rows.shuffle(seed=seed_of("pass", self.seed, self.epoch, turn), buffer_size=SHUFFLE_BUFFER):
                yield row
            if row is None:
                raise HuvrError(f"{self.source}: a rank or worker gets no rows of this stream; use fewer, or streaming false")
