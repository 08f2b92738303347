"""The shipped batch files, and the requeue of a job, without SLURM; tests/slurm/run.py does it with SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos import BoringModel
from torch.utils.data import DataLoader

from huvr.requeue import Requeue, requeue

SHIPPED = Path(__file__).parents[1] / "configs" / "slurm"
FILES = sorted(path.name for path in SHIPPED.glob("*.sbatch"))
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "test", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1",
       "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_CPUS_PER_TASK": "3"}  # fmt: skip


def directives(name: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", (SHIPPED / name).read_text(), re.MULTILINE)
    return dict(found)


def command(folder: Path, name: str) -> None:
    """A command of that name that writes its arguments to ``NAME.txt``, one a line, and the CPUs of a task."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/bash\nprintf "%s\\n" "$SRUN_CPUS_PER_TASK" "$@" >> {folder}/{name}.txt\n')
    path.chmod(0o755)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, in a SLURM job of one task, with ``srun`` and ``scontrol`` that only take note."""
    monkeypatch.chdir(tmp_path)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    for name in ("srun", "scontrol"):
        command(tmp_path, name)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def submitted(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SHIPPED / name, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", FILES)
def test_a_job_is_warned_and_requeued_and_keeps_one_log(name: str) -> None:
    told = directives(name)
    assert told["signal"] == "SIGUSR1@120"
    assert "requeue" in told
    assert told["open-mode"] == "append"
    assert "/" not in told["output"], "SLURM loses the log of a job when its folder does not exist"
    assert told["ntasks-per-node"] == told["gpus-per-node"]
    assert "ntasks" not in told, "Lightning needs ntasks-per-node"


def test_pretraining_takes_nodes_and_tasks_from_the_job(job: Path) -> None:
    given = {"SLURM_NNODES": "32", "SLURM_NTASKS_PER_NODE": "8"}
    done = submitted("pretrain.sbatch", "--data.root", "/with a space", **given)
    assert done.returncode == 0, done.stderr
    cpus, *told = (job / "srun.txt").read_text().splitlines()
    assert cpus == "3"
    start = told.index("huvr")
    assert all(option.startswith("--") for option in told[:start])
    options = " ".join(told[start:])
    assert options.startswith("huvr fit --config pretrain.yaml --trainer.num_nodes 32 --trainer.devices 8 ")
    assert told[-4:] == ["--ckpt_path", "auto", "--data.root", "/with a space"]  # ours come last, so they win


def test_a_probe_takes_its_line_of_the_file(job: Path) -> None:
    Path("probes.txt").write_text("--task knn --model.k '[1, 2]'\n--task logistic --data.root \"a b\"\n")
    for line, task, options in (("1", "knn", ["--model.k", "[1, 2]"]), ("2", "logistic", ["--data.root", "a b"])):
        done = submitted("probes.sbatch", "probes.txt", "--tokens", "tintok", SLURM_ARRAY_TASK_ID=line)
        assert done.returncode == 0, done.stderr
        cpus, *told = (job / "srun.txt").read_text().splitlines()
        assert cpus == "3"
        assert told[:2] == ["huvr", "probe"]
        assert told[-6:] == ["--tokens", "tintok", "--task", task, *options]
        (job / "srun.txt").unlink()


def test_a_line_that_is_missing_is_told(job: Path) -> None:
    Path("probes.txt").write_text("--task knn\n")
    done = submitted("probes.sbatch", "probes.txt", SLURM_ARRAY_TASK_ID="2")
    assert (done.returncode, done.stderr) == (2, "probes.txt has no line 2\n")
    done = submitted("probes.sbatch", SLURM_ARRAY_TASK_ID="1")
    assert done.returncode != 0
    assert "which file holds the options of the probes?" in done.stderr
    assert not (job / "srun.txt").exists()


class SignalAt(Callback):
    """SLURM's warning in the middle of a step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGUSR1)


class Small(BoringModel):
    """A few numbers, trained on the same batch again and again."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(100, 32))  # type: ignore[arg-type]


def trained(run: Path, *callbacks: Callback, resume: Path | None = None, accumulate: int = 1) -> tuple[int, torch.Tensor]:
    """Up to 30 steps of a small network; the number of the last one, and its weights."""
    torch.manual_seed(0)
    model = Small()
    trainer = Trainer(
        default_root_dir=run, max_steps=30, limit_val_batches=0, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=True, enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
        callbacks=[*callbacks, Requeue()],
    )  # fmt: skip
    trainer.fit(model, ckpt_path=resume, weights_only=True)
    return trainer.global_step, model.layer.weight.detach()


@pytest.mark.parametrize(("accumulate", "batch"), [(1, 12), (3, 37)])
def test_the_signal_ends_a_run_at_a_step_from_which_it_goes_on(job: Path, accumulate: int, batch: int) -> None:
    expected = trained(job / "whole", accumulate=accumulate)
    assert not (job / "scontrol.txt").exists()
    last = job / "requeued" / "hpc_ckpt_1.ckpt"
    with pytest.raises(SystemExit) as exit:
        trained(job / "requeued", SignalAt(batch), accumulate=accumulate)
    assert not exit.value.code
    assert (job / "scontrol.txt").read_text().split() == ["requeue", "7"]
    assert torch.load(last, weights_only=True)["global_step"] == 13  # of both: that in which the signal came
    steps, weights = trained(job / "requeued", resume=last, accumulate=accumulate)
    assert steps == expected[0] == 30
    torch.testing.assert_close(weights, expected[1], rtol=0, atol=0)
    assert not last.exists()


def test_a_job_that_is_not_requeued_goes_on(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job / "bin" / "scontrol").write_text("#!/bin/bash\necho 'requeue is off' >&2\nexit 1\n")
    with pytest.warns(UserWarning, match=r"step 5: \S+/hpc_ckpt_1\.ckpt is written, but the job is not requeued: requeue is off"):
        steps, _ = trained(job / "run", SignalAt(4))
    assert steps == 30
    (job / "bin" / "scontrol").unlink()
    monkeypatch.setenv("PATH", f"{job}/bin")
    assert requeue() == "scontrol: No such file or directory"


def test_before_training_the_job_is_requeued_at_once_and_once(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Requeue()  # no trainer yet, and still no features
    with pytest.raises(SystemExit) as exit:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert not exit.value.code
    assert (job / "scontrol.txt").read_text().split() == ["requeue", "7"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    Requeue()
    with pytest.warns(UserWarning, match="no step of training within the time limit: not requeued again"):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert len((job / "scontrol.txt").read_text().split()) == 2


def test_outside_of_slurm_the_signal_is_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    trained(tmp_path)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_one_element_of_an_array_does_not_requeue_the_others(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert requeue() == ""
    assert (job / "scontrol.txt").read_text().split() == ["requeue", "5_2"]
