"""On SLURM: a checkpoint and a place in the queue again before the time limit ends a job."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from huvr.safety import agreed


class Requeue(Checkpoint):
    """Answers ``--signal=SIGUSR1@SECONDS`` of sbatch: writes a checkpoint, requeues the job, and leaves.

    Lightning's own answer saves inside the signal handler, wherever in a step each process happens to be: one may wait
    there for another that still waits for its gradients, and then both hang until the time limit. Here the handler only
    takes note, and the processes agree on a step, see :func:`huvr.safety.agreed`. Outside of SLURM nothing happens.

    Before the first step and after the last, while data are prepared or a probe is tested, there is nothing to save: the job
    is requeued at once. Unless it has been before and still came to no step: it would never.

    The checkpoint has the name that Lightning's own would have, ``hpc_ckpt_1.ckpt`` in the run folder, where ``--ckpt_path
    auto`` finds it; it is removed when training has come to its end, and is never taken for a result before.

    It is a ``Checkpoint``, so that Lightning calls it after the callbacks that change weights, such as EMA.
    """

    def __init__(self) -> None:
        self.asked = self._training = False
        self._step: int | None = None  # the last one, None before the first
        self._written: Path | None = None
        self._process = os.getpid()
        if SLURMEnvironment.detect():
            signal.signal(signal.SIGUSR1, self._ask)  # before Lightning's, which then stays away

    def _ask(self, *_: Any) -> None:
        self.asked = True
        first = os.environ.get("SLURM_PROCID", "0") == "0" and os.getpid() == self._process  # workers inherit the handler
        if self._training or not first:
            return
        if self._step is None and int(os.environ.get("SLURM_RESTART_COUNT", 0)):
            rank_zero_warn("requeued before, and yet no step of training within the time limit: not requeued again")
            return
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if failed := requeue():
            signal.signal(signal.SIGTERM, before)
            rank_zero_warn(f"the job is not requeued: {failed}")
            return
        rank_zero_info("outside of training: nothing to save, and the job requeued")
        raise SystemExit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training, self._step = True, trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self._step:  # in the middle of an accumulation gradients would be lost
            return
        self._step = step
        if agreed(trainer, self.asked):
            self.asked = False
            self._written = checkpoint_of(trainer)
            trainer.save_checkpoint(self._written, weights_only=False)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Leaves only here: Lightning logs the metrics of a step after its end."""
        if self._written is not None:
            self._leave(trainer, self._written)
            self._written = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False
        if trainer.is_global_zero:
            checkpoint_of(trainer).unlink(missing_ok=True)

    def _leave(self, trainer: Trainer, checkpoint: Path) -> None:
        """Raises SystemExit where the job is requeued; else training goes on to the time limit."""
        # A requeued job gets SIGTERM at once, upon which Lightning would talk to processes that have left.
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        trainer.strategy.barrier()
        failed = trainer.strategy.broadcast(requeue() if trainer.is_global_zero else None)
        if failed:
            signal.signal(signal.SIGTERM, before)
            rank_zero_warn(f"step {trainer.global_step}: {checkpoint} is written, but the job is not requeued: {failed}")
            return
        rank_zero_info(f"step {trainer.global_step}: {checkpoint} is written, and the job requeued")
        raise SystemExit


def checkpoint_of(trainer: Trainer) -> Path:
    """The file that a requeued job goes on from."""
    return Path(trainer.default_root_dir, "hpc_ckpt_1.ckpt")


def requeue() -> str:
    """Puts this SLURM job into the queue again; returns why that failed, or nothing."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")  # also the id of one element of the array: the whole array must not be meant
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"scontrol: {error.strerror}"
    return "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"scontrol ended with status {done.returncode}"
