"""Data that training can go on with in the middle of an epoch."""

from __future__ import annotations

from functools import partial

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from huvr.data.loader import ROUND, Draws, TrainLoader
from huvr.data.stream import TrainStream

MIXED = "in the epoch that was broken off some images come twice or not at all"
# what may be another number when training goes on, and what follows
OTHERS = {
    "step": f"steps of {{}} images, of {{}} in the checkpoint: the place in an epoch is counted in steps, so {MIXED}",
    "images": f"{{}} images, {{}} in the checkpoint: {MIXED}, and where a share is held out, it is another one",
    "shards": f"a stream of {{}} shards, of {{}} in the checkpoint: {MIXED}",
    "readers": "{} data.workers read the stream, {} in the checkpoint: its images come in another order",
}


class ResumableData(LightningDataModule):
    """Checkpoints remember the place in the epoch, from which the next training goes on.

    Lightning saves the state of a loader too, but does not restore it when the trainer knew the loader before the checkpoint,
    as it does when a schedule asks for the number of steps. A subclass makes its training batches by :meth:`resumable`.

    Attributes:
        batch_size: training samples per batch and device.
    """

    batch_size: int

    def __init__(self) -> None:
        super().__init__()
        self._loader: TrainLoader | None = None
        self._resume: dict[str, int] = {}

    @property
    def _rank(self) -> tuple[int, int]:
        """This process, and among how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _step(self) -> int:
        return self.batch_size * self._rank[1]

    @property
    def _told(self) -> dict[str, int]:
        """What the images of a place in an epoch hang on, beside the seed, by the words of :data:`OTHERS`."""
        return {"step": self._step}

    def resumable(
        self, batches: DataLoader, sampler: Draws | TrainStream, length: int, echoes: int = 1, together: int = ROUND
    ) -> TrainLoader:
        """The loader of an epoch of ``length`` different batches, see :class:`huvr.data.loader.TrainLoader`."""
        finished = partial(finished_batches, self.trainer) if self.trainer else None
        self._loader = TrainLoader(batches, sampler, length, self._resume, finished, echoes, together)
        return self._loader

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch, for a checkpoint, and what the images of it hang on."""
        return self._loader.state_dict() | self._told if self._loader else {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Training goes on from there; validation and tests of a checkpoint leave training alone."""
        if self.trainer is None or self.trainer.training:
            for name, now in self._told.items():
                if (before := state.get(name, now)) != now:
                    rank_zero_warn(OTHERS[name].format(now, before))
            self._resume.update({name: number for name, number in state.items() if name not in OTHERS})


def finished_batches(trainer: Trainer) -> int:
    """How many batches of its epoch the trainer has trained on."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
