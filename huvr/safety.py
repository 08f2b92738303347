"""Training that loses nothing: bad steps are skipped, and checkpoints are written whole or not at all."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from huvr.errors import HuvrError
from huvr.files import whole

BETWEEN = "huvr_between_batches"  # in checkpoints of callbacks that write one between the batches that a step accumulates
EVERY = 10  # steps between two agreements of several processes: each of them waits for the device


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Their common L2 norm, also of gradients that lie in shards on many processes (all of them must then ask)."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class SkipNonFinite(Callback):
    """Skips each optimiser step whose loss or gradient is not finite on some process, and counts it.

    The gradients of such a step are dropped before they are clipped: weights and moments stay as they are, while
    the schedule and the number of the step go on. A step of accumulated batches is skipped as a whole. The count is
    logged as ``skipped_steps`` and kept in checkpoints. It costs a norm of the gradients and one number read
    from the device a step. In ``16-mixed`` precision the steps that the loss scaler would skip count too.

    Args:
        most_in_a_row: so many skipped steps one after another end the training.

    Raises:
        HuvrError: for a number below 1, and at the end of so many steps, naming the last checkpoint.
    """

    def __init__(self, most_in_a_row: int = 20) -> None:
        if most_in_a_row < 1:
            raise HuvrError(f"most_in_a_row {most_in_a_row}: expected 1 or more")
        self.most_in_a_row = most_in_a_row
        self.skipped = self.in_a_row = 0
        self._bad_losses: Tensor | None = None  # of the batches accumulated so far; stays on the device

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        bad = (~loss.detach().isfinite()).any()
        self._bad_losses = bad if self._bad_losses is None else self._bad_losses | bad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        bad = ~total_norm([p.grad for p in pl_module.parameters() if p.grad is not None]).isfinite()
        if self._bad_losses is not None:
            bad, self._bad_losses = bad | self._bad_losses, None
        if trainer.strategy.reduce(bad.float(), reduce_op="sum").item():
            pl_module.zero_grad(set_to_none=True)  # an optimiser leaves parameters without gradient alone
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            rank_zero_warn(
                f"step {trainer.global_step}: loss or gradient is not finite, step skipped; {self.skipped} skipped so far"
            )
        else:
            self.in_a_row = 0
        pl_module.log("skipped_steps", torch.tensor(float(self.skipped)))  # a bare number would go through the device
        if self.in_a_row == self.most_in_a_row:
            raise HuvrError(
                f"{self.in_a_row} steps in a row, the last being step {trainer.global_step}, had no finite loss and gradient: "
                f"training stopped; {last_checkpoint(trainer)}"
            )

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def last_checkpoint(trainer: Trainer) -> str:
    """The newest checkpoint of this training, in words."""
    callbacks = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    named = {Path(name) for each in callbacks for name in (each.last_model_path, each.best_model_path, *each.best_k_models)}
    written = [path for path in named if path.is_file()]
    if not written:
        return "no checkpoint has been written"
    return f"the last good checkpoint is {max(written, key=lambda path: path.stat().st_mtime)}"


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt`` with all that training goes on from, written when Lightning's own would be, and where training ends whenever
    that is.

    Lightning leaves out the end of a training that validates within its epochs, or not after each of them, and takes an epoch
    that was broken off for a whole one. Between the batches that one step accumulates nothing is written, as their gradients
    would be lost: a checkpoint, or the end of training, that is due there waits for the step.

    SIGTERM (of kill, timeout, scancel, docker stop) ends training after the step at hand, or with several processes at the next
    multiple of ``EVERY``, whichever of them it came to. Lightning's own answer writes nothing, and has the processes talk to
    each other inside the signal handler, where the one may be about to add up gradients, and the other not.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)
        self._step = 0
        self._accumulating = self._due = self._stop = False
        self._asked = self._leaving = False  # by SIGTERM

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        begin_next_epoch(trainer)
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)  # in the place of Lightning's, which puts back what was before

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Of checkpoints of other callbacks too."""
        if trainer.state.fn == TrainerFn.FITTING and trainer.fit_loop._should_accumulate():
            checkpoint[BETWEEN] = True

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Averaged weights are not trained on by the moments of those that they are an average of; and max_time counts anew."""
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, Timer):
                checkpoint.get("callbacks", {}).pop(each.state_key, None)
        averaged = any(isinstance(each, WeightAveraging) for each in trainer.callbacks)  # type: ignore[attr-defined]
        if "current_model_state" in checkpoint and trainer.state.fn == TrainerFn.FITTING and not averaged:
            raise HuvrError(
                "ckpt_path: the checkpoint keeps averaged weights: go on with the callback that averages, such as "
                "EMAWeightAveraging, under trainer.callbacks"
            )

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *arguments)
        self._accumulating = trainer.accumulate_grad_batches > 1 and trainer.global_step == self._step
        self._step = trainer.global_step
        if self._accumulating:
            self._wait(trainer)
            return
        self._leaving = agreed(trainer, self._asked)
        if self._due or self._leaving:
            self._save(trainer)
        trainer.should_stop |= self._stop
        self._due = self._stop = False

    def on_train_batch_start(self, *_: Any) -> None:
        """Leaves only here, or before a validation: Lightning logs the metrics of a step after its end."""
        if self._leaving:
            raise SIGTERMException

    def on_validation_start(self, *_: Any) -> None:
        self.on_train_batch_start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._accumulating:
            self._due = True
            self._wait(trainer)
        else:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not epoch_done(trainer) and (over(trainer) or trainer.should_stop):
            with uncounted(trainer):
                self._save(trainer)
            return
        super().on_train_epoch_end(trainer, pl_module)
        # Not at the end of training itself, when a callback that averages has put the average in the place of the weights.
        epochs_over = 0 <= (-1 if trainer.max_epochs is None else trainer.max_epochs) <= trainer.current_epoch + 1
        if over(trainer) or epochs_over or trainer.should_stop:
            self._save(trainer)

    def _wait(self, trainer: Trainer) -> None:
        """A stop that was asked for between the batches of a step is put off to its end."""
        self._stop |= trainer.should_stop
        trainer.should_stop = False

    def _save(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def begin_next_epoch(trainer: Trainer) -> None:
    """A checkpoint of the end of an epoch is followed by the next one.

    After one of its last batch Lightning counts the next epoch as part of it, and then a checkpoint of the end of an epoch, such
    as ours, as one of its middle: training would miss an epoch. After one of its end, where steps limit training, it takes the
    epoch for one to go on with: the data are then an epoch ahead, or a stray batch is taken for an epoch.
    """
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress
    if loop.restarted_mid_epoch and progress.total.processed == progress.total.started:
        loop.reset_restart_stage()
    elif loop.restarted_on_epoch_end or loop.resumed_on_epoch_end:
        for counts in (progress.current, progress.total):
            counts.completed = counts.processed
        loop.restarting = False  # its inner loops neither
        loop.reset_restart_stage()
        loop.epoch_loop.reset_restart_stage()
        loop.epoch_loop.batch_progress.reset_on_run()


def agreed(trainer: Trainer, asked: bool) -> bool:
    """Whether to leave after this optimiser step, which some process was asked to do: the same on all of them."""
    if trainer.world_size == 1:
        return asked
    return trainer.global_step % EVERY == 0 and trainer.strategy.reduce_boolean_decision(asked, all=False)


def over(trainer: Trainer) -> bool:
    """Whether it has taken all its steps."""
    return 0 <= trainer.max_steps <= trainer.global_step


@contextmanager
def uncounted(trainer: Trainer) -> Iterator[None]:
    """The epoch that was broken off is none that training is done with, as Lightning has counted it by its end."""
    epochs: Any = trainer.fit_loop.epoch_progress
    for counts in (epochs.total, epochs.current):
        counts.processed -= 1
    yield
    for counts in (epochs.total, epochs.current):
        counts.processed += 1


def epoch_done(trainer: Trainer) -> bool:
    """Whether the batch at hand is the last one of its epoch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready == trainer.num_training_batches


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place, to the disk, and renames it: at any moment there is a whole one or none.

    Lightning's own writer goes through the system's temporary folder, from where a file is copied, not renamed, to
    another disk, and holds a second copy of the checkpoint in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; what earlier writers left unfinished beside it, killed at their work, goes.

        Raises:
            HuvrError: where it cannot be written, such as on a full disk; a checkpoint already there stays.
        """
        if "://" in str(path):  # no local file
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        for unfinished in Path(path).parent.glob(f".*{Path(path).suffix}.*.partial"):
            unfinished.unlink(missing_ok=True)
        with whole(path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch hides what went wrong with the file
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())
