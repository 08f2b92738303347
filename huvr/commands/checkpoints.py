"""The checkpoints of a run: which one to start from, and which not to overwrite."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from huvr.errors import HuvrError
from huvr.files import read_torch
from huvr.safety import BETWEEN


def find_checkpoint(name: str | None, run: Path, training: bool) -> Path | None:
    """The checkpoint file to start from: ``name`` itself, or for "auto" the intact one of the run with the most steps.

    After a SLURM requeue that is Lightning's ``hpc_ckpt_*`` file, which its own ``last`` overlooks. Of several of the same
    step ``hpc_ckpt_*`` and ``last*`` come first: others may have counted an epoch that was broken off as a whole one. A
    damaged one is warned of, and passed over, and so is one that training cannot go on from, where that is asked and there is no
    other.

    Args:
        training: training goes on from it, or starts anew where "auto" finds none.

    Raises:
        HuvrError: for a file that is no checkpoint of ours, or where "auto" finds none and one is needed or
            finds damaged ones only, which a fresh start would overwrite.
    """
    if name is None:
        return None
    if name != "auto":
        check_checkpoint(Path(name), training)
        return Path(name)
    found: list[tuple[int, bool, int, str]] = []
    damaged = False
    incomplete: list[HuvrError] = []
    for path in checkpoints_in(run):
        try:
            step = check_checkpoint(path, training)
        except Incomplete as error:
            incomplete.append(error)
        except HuvrError as error:
            rank_zero_warn(f"{error}; it is passed over")
            damaged = True
        else:
            found.append((step, path.name.startswith(("hpc_ckpt_", "last")), path.stat().st_mtime_ns, str(path)))
    if found:
        return Path(max(found)[-1])
    for each in incomplete:
        rank_zero_warn(f"{each}; it is passed over")
    if damaged:
        raise HuvrError(f"ckpt_path auto: no checkpoint in {run} can be read; to start anew, remove them or choose another run")
    if not training:
        raise HuvrError(f"ckpt_path auto: no checkpoint in {run}")
    return None


def checkpoints_in(run: Path) -> list[Path]:
    return [path for path in (*run.glob("hpc_ckpt_*.ckpt"), *run.glob("checkpoints/*.ckpt")) if path.is_file()]


def refuse_to_overwrite(run: Path, verb: str, start: str | None, trainer: Trainer) -> None:
    """Raise a HuvrError where training from ``start`` would replace the checkpoints of another one.

    On SLURM also where a requeued job left a checkpoint: Lightning takes it there, for whatever verb, when it is given none.
    """
    found = checkpoints_in(run)
    left = next((path for path in found if path.parent == run), None)
    if left and start is None and SLURMEnvironment.detect():
        raise HuvrError(f"{left}: left by a job that was requeued; --ckpt_path auto takes it, to do without remove it")
    writes = verb == "fit" and trainer.checkpoint_callbacks and not trainer.fast_dev_run  # type: ignore[attr-defined]
    if found and writes and not goes_on(run, start):
        raise HuvrError(
            f"run folder {run} holds a training ({found[0].relative_to(run)}): --ckpt_path auto goes on with it; "
            "to begin another, choose another --run or remove it"
        )


def goes_on(run: Path, start: str | None) -> bool:
    """Whether training from ``start`` goes on with what the run folder holds."""
    return start == "auto" or (start is not None and run.resolve() in Path(start).resolve().parents)


class Incomplete(HuvrError):
    """A checkpoint that training cannot go on from."""


def check_checkpoint(path: Path, training: bool) -> int:
    """The step of a checkpoint; a HuvrError unless the file is one of training, and one to go on from if ``training``."""
    if not path.is_file():
        problem = "a folder" if path.is_dir() else "no such file"
        raise HuvrError(f"checkpoint {path}: {problem} (expected a .ckpt file of huvr fit, or auto for that of --run)")
    try:
        content = read_torch(path, mmap=True)
    except HuvrError:
        content = {}
    if "pytorch-lightning_version" not in content:
        raise HuvrError(f"checkpoint {path}: not a .ckpt file of huvr fit")
    if training and "optimizer_states" not in content:
        raise Incomplete(f"checkpoint {path}: of weights alone (save_weights_only), from which training cannot go on")
    if training and content.get(BETWEEN):
        raise Incomplete(f"checkpoint {path}: written between the batches of a step, whose gradients it has not: take another")
    return content.get("global_step", 0)
