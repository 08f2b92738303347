"""Batches in an order that is known in advance, and the place in it that a checkpoint remembers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate
from torchvision.transforms.v2.functional import to_dtype

from huvr.data.samples import Draw, Sample, Size, seed_of, size_of
from huvr.data.stream import TrainStream
from huvr.errors import HuvrError, of_worker

Batch = dict[str, Any]

ROUND = 4  # batches, at least, that come before the first of them comes again


def workers_of(asked: int | None) -> int:
    """Processes that read, per device; None suits the machine."""
    return min(16, suggested_max_num_workers(1)) if asked is None else asked


def images_of(batch: Batch) -> Tensor:
    """The images ``(B, 3, H, W)`` of a batch in [0, 1], converted where they are: bytes travel to the GPU."""
    return to_dtype(batch["image"], torch.float32, scale=True)


class Echo(NamedTuple):
    """Which of the different batches of training a batch is, and how often it will come again."""

    number: int
    left: int


class Draws(Sampler[Draw]):
    """The training samples of one rank, a pure function of (seed, epoch, position).

    An epoch goes round all images as often as ``epoch_size`` asks for, each time in a new order; position
    p of it belongs to rank p mod world, so ranks are disjoint, the last incomplete round of ranks is left
    out, and the images of a step do not depend on how many ranks share them.

    Args:
        images: how many there are.
        epoch_size: samples of an epoch, all ranks together.
        sizes: (H, W) to choose from, one a batch, the same on every rank.
        batch_size: samples per batch on one rank.
        seed: of order, crops and sizes.
        rank, world: this process among all that train together.
    """

    def __init__(
        self, images: int, epoch_size: int, sizes: Sequence[Size], batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.epoch_size, self.sizes, self.batch_size = images, epoch_size, sizes, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.epoch_size // self.world

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
        rounds = -(-self.epoch_size // self.images)
        order = torch.cat([torch.randperm(self.images, generator=generator) for _ in range(rounds)])
        for place in range(self.start * self.batch_size, len(self)):
            position = place * self.world + self.rank
            size = size_of(self.sizes, self.seed, self.epoch, place // self.batch_size)
            yield Draw(int(order[position]), seed_of("crop", self.seed, self.epoch, position), size)


def held_out_batches(images: int, batch_size: int, rank: int = 0, world: int = 1) -> list[range]:
    """The images of each batch of one rank, which looks at every ``world``-th of them.

    Ranks get equally many batches, as networks in shards need, of nearly as many images: the last batch of a rank may be smaller,
    and the one before it too. No image is looked at twice, unless there are fewer images than ranks, or batches of one.
    """
    batches = -(-images // (world * batch_size))
    mine = max(len(range(rank, images, world)), batches)  # past the end: round to the first ones
    edges = [min(number * batch_size, mine - batches + number) for number in range(batches)]
    positions = range(rank, rank + mine * world, world)
    return [positions[start:end] for start, end in pairwise([*edges, mine])]


def share_of(images: int, rank: int, world: int) -> range:
    """Every ``world``-th image, for batches that one rank may have more of than another.

    Raises:
        HuvrError: where some rank would have none.
    """
    if images < world:
        raise HuvrError(
            f"{images} image(s) to measure on, fewer than the {world} processes: set trainer.devices {images} or less"
        )
    return range(rank, images, world)


def collate(samples: list[Sample]) -> tuple[Batch, list[str]]:
    """A batch, and what is wrong with the images skipped on the way."""
    skipped = [reason for sample in samples for reason in sample.pop("skipped")]
    return default_collate(samples), skipped


def outlast(worker: int) -> None:
    """In a worker: SIGTERM that timeout, scancel and others send to all processes is for the one that trains to answer.

    That of the parent itself ends it, by which torch and Python end what still works when they are done.
    """
    if sys.platform == "linux":  # elsewhere no signal tells where it is from
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=until_terminated, args=(os.getppid(),), daemon=True).start()


def until_terminated(parent: int) -> None:
    """End this process when another, ``parent``, terminates it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class Loader:
    """Batches ``{"image": uint8 (B, 3, H, W), "label": int64 (B,) where labelled}``.

    Corrupt images are warned of here, in the process that trains, so that each is named once and all
    workers' are counted together.
    """

    def __init__(self, batches: DataLoader) -> None:
        self.batches = batches
        self.batches.worker_init_fn = outlast
        self._skipped: set[str] = set()

    # Lightning ends persistent workers by this name of DataLoader's, after training and when it breaks off.
    # Left to the garbage collector, which may take down their queues first, each of them takes five seconds to give up.
    @property
    def _iterator(self) -> object:
        return self.batches._iterator

    @_iterator.setter
    def _iterator(self, nothing: None) -> None:
        self.batches._iterator = nothing

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self._told(iter(self.batches))

    def _told(self, batches: Iterator[tuple[Batch, list[str]]]) -> Iterator[Batch]:
        try:
            for batch, skipped in batches:
                for what in skipped:
                    if what not in self._skipped:
                        self._skipped.add(what)
                        warnings.warn(f"image skipped, {len(self._skipped)} so far: {what}", stacklevel=2)
                yield batch
        except HuvrError as error:
            raise HuvrError(of_worker(str(error))) from None


class TrainLoader(Loader):
    """Training batches that Lightning can resume in the middle of an epoch.

    Lightning finds ``sampler.set_epoch`` and calls it before each epoch, but after ``iter``. It leaves
    the ranks alone, as this is no ``DataLoader``: they are dealt with by ``sampler``.

    Args:
        batches: where they come from.
        sampler: what decides on them, the sampler or the stream of ``batches``.
        length: different batches in an epoch.
        resume: the state to go on from, emptied when the next iteration begins; may be filled until then.
        finished: how many batches of this epoch the trainer has finished, which a checkpoint written in
            the middle of a step needs to know; by default those handed out, not those prefetched.
        echoes: how often each batch comes, the very same pictures, in rounds of ``together`` batches or, at the end of an
            epoch, up to twice as many; above 1 a batch has its :class:`Echo` beside the images.
        together: so many batches in a row are all different, where an epoch has as many.
    """

    def __init__(
        self,
        batches: DataLoader,
        sampler: Draws | TrainStream,
        length: int,
        resume: dict[str, int],
        finished: Callable[[], int] | None = None,
        echoes: int = 1,
        together: int = ROUND,
    ) -> None:
        super().__init__(batches)
        self.sampler = sampler
        self.length = length
        self.resume = resume
        self.finished = finished
        self.echoes = echoes
        self.together = self._together = together
        self.epoch = self.handed = 0

    def __len__(self) -> int:
        return self.length * self.echoes

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches are done with."""
        if self.resume:
            return dict(self.resume)
        done = self.finished() if self.finished else self.handed
        return {"epoch": self.epoch, "batches": done} | ({"together": self._together} if self.echoes > 1 else {})

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration gives the rest of that epoch, if it is of that epoch."""
        self.resume.update(state)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing happens before the first batch is asked for, when the epoch is known.
        self.epoch = self.sampler.epoch
        # A checkpoint written at the end of an epoch is of no concern to the next one.
        begun = dict(self.resume) if self.resume.get("epoch") == self.epoch else {}
        self.resume.clear()
        self.handed = min(begun.get("batches", 0), len(self))
        # An epoch ends in the rounds that it began in, and only with a round of echoes can a new one begin.
        self._together = begun.get("together", ROUND) if begun else self.together
        together = self._together if self.echoes > 1 else 1
        last = max(0, self.length // together - 1) if self.echoes > 1 else self.length
        rounds = min(self.handed // (together * self.echoes), last)
        rest = self.handed - rounds * together * self.echoes
        first = self.sampler.start = rounds * together
        # A stream can only begin where it is the first worker's turn.
        surplus = first % max(1, self.batches.num_workers) if isinstance(self.sampler, TrainStream) else 0
        fresh = self._told(islice(self.batches, surplus, surplus + self.length - first))
        for batch in islice(self._echoed(fresh, first) if self.echoes > 1 else fresh, rest, None):
            self.handed += 1
            yield batch

    def _echoed(self, batches: Iterator[Batch], first: int) -> Iterator[Batch]:
        """Rounds of ``batches``, the first of which is number ``first`` of its epoch, each round ``echoes`` times."""
        numbered = enumerate(batches, start=self.epoch * self.length + first)
        last = max(0, (self.length - first) // self._together - 1)
        for rounds in range(last + 1):
            kept = []
            for number, batch in islice(numbered, self._together if rounds < last else None):
                kept.append((number, batch))
                yield batch | {"echo": Echo(number, self.echoes - 1)}
            for left in reversed(range(self.echoes - 1)):
                for number, batch in kept:
                    yield batch | {"echo": Echo(number, left)}
