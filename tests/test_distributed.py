"""Training on several processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_network import TINY

import huvr
from huvr.data.loader import held_out_batches, share_of
from huvr.errors import HuvrError
from huvr.pretrain import Pretraining
from huvr.sharding import shard


def run(command: list[str], timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, but of what has not ended in time no process stays, the command's own ones neither."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes, **options) as started:
        try:
            out, err = started.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, started.returncode, out, err)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one, two and four processes ended with; 7 images to validate, which no two ranks can halve."""
    folder, generator = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 7)):
        (folder / split).mkdir()
        for number in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            coarse.resize((48, 40), Image.Resampling.BICUBIC).save(folder / split / f"{number}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("distributed_runs.py")), str(port)]
    done = run(command, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("processes", ["two", "four"])
def test_processes_train_and_measure_as_one_with_their_batches_together(trained: Path, processes: str) -> None:
    one, together = (torch.load(trained / f"{name}.pt") for name in ("one", processes))
    for name, tensor in one.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=2e-5, msg=name)


def test_processes_that_look_for_neighbours_among_their_own_images_differ(trained: Path) -> None:
    one, apart = (torch.load(trained / f"{name}.pt") for name in ("one", "two-apart"))
    assert max((apart[name] - tensor).abs().max() for name, tensor in one.items() if name.startswith("net.")) > 1e-3


@pytest.mark.parametrize("name", ["shards", "shards-resumed", "one-resumed"])
def test_training_in_shards_is_that_of_one_process_and_goes_on_from_the_same_checkpoints(trained: Path, name: str) -> None:
    expected, found = (torch.load(trained / f"{run}.pt") for run in ("one-whole", name))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=5e-5, msg=key)


def test_one_process_loads_what_was_trained_in_shards(trained: Path) -> None:
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shards, one = (huvr.load(trained / name / "epoch=1.ckpt").reconstruct(images) for name in ("shards", "one-whole"))
    torch.testing.assert_close(shards, one, rtol=1e-4, atol=1e-4)


def test_pictures_are_drawn_of_weights_in_shards(trained: Path) -> None:
    events = EventAccumulator(str(trained / "shards")).Reload()
    assert [event.step for event in events.Images("pictures")] == [0, 2, 4]


def test_weights_in_shards_are_not_averaged() -> None:
    module = Pretraining(TINY)
    module.trainer = Trainer(callbacks=[EMAWeightAveraging()], accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(HuvrError, match="weights in shards cannot be averaged: leave out EMAWeightAveraging"):
        shard(module, [], mesh=None)  # type: ignore[arg-type]


def test_all_ranks_skip_a_step_that_one_of_them_cannot_use(trained: Path) -> None:
    """The second of two steps, in which the loss of the other rank alone is infinite, and all gradients are finite."""
    before, after = (torch.load(trained / f"spoilt-{steps}.pt") for steps in (1, 2))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


FAILING = """
import os, time
from lightning.pytorch.demos.boring_classes import BoringModel
from huvr.errors import HuvrError

class Failing(BoringModel):
    def training_step(self, batch, batch_idx):
        if self.global_rank == int(os.environ["FAILS"]):
            raise HuvrError("the disk is full")
        time.sleep(float(os.environ["WAITS"]))
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.parametrize(("rank", "waits"), [("0", "0"), ("1", "0"), ("1", "1000")])
def test_an_error_of_one_process_is_one_line_and_ends_all(tmp_path: Path, rank: str, waits: str) -> None:
    """Whether the other one hears of it from the connection that breaks, or has its mind on something else."""
    (tmp_path / "failing.py").write_text(FAILING)
    options = {"devices": 2, "accelerator": "cpu", "strategy": "ddp", "max_steps": 2, "logger": "false"}
    done = run(
        [sys.executable, "-m", "huvr", "fit", "--model", "failing.Failing",
         "--data", "lightning.pytorch.demos.boring_classes.BoringDataModule",
         *(f"--trainer.{name}={value}" for name, value in options.items())],
        timeout=120, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "FAILS": rank, "WAITS": waits},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "huvr: error: the disk is full"
    assert "Traceback" not in done.stderr


TERMINATED = """
import os, subprocess, torch
from lightning.pytorch.demos.boring_classes import BoringModel

class Terminated(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 32 * 32, 2)

    def forward(self, batch):
        return self.layer(batch["image"].float().flatten(1) / 255)

    def on_before_backward(self, loss):
        if self.global_rank == 1 and self.global_step == 4:
            subprocess.run(["kill", "-TERM", "--", str(-os.getpgrp() if os.environ["WHOM"] == "all" else os.getpid())])
"""


@pytest.mark.parametrize("whom", ["all", "one"])
def test_sigterm_ends_all_processes_after_the_same_step(tmp_path: Path, whom: str) -> None:
    """Whether all of them hear it, the workers too, as of timeout and scancel, or one alone, amid a step."""
    (tmp_path / "terminated.py").write_text(TERMINATED)
    for number in range(8):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    options = {"devices": 2, "accelerator": "cpu", "strategy": "ddp", "max_steps": 50, "limit_val_batches": 0, "logger": "false"}
    images = {"root": ".", "size": 32, "batch_size": 1, "workers": 1, "held_out": 0}
    done = run(
        [sys.executable, "-m", "huvr", "fit", "--model", "terminated.Terminated", "--data", "huvr.data.Images",
         *(f"--trainer.{name}={value}" for name, value in options.items()),
         *(f"--data.{name}={value}" for name, value in images.items())],
        timeout=120, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path), "WHOM": whom},
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    line = "huvr: terminated after step 10; --ckpt_path auto goes on from the last checkpoint"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr
    assert torch.load(tmp_path / "runs" / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10


@pytest.mark.parametrize(
    ("images", "batch_size", "world"), [(7, 2, 4), (10, 4, 1), (17, 8, 2), (33, 4, 4), (5, 8, 5), (100, 7, 3)]
)
def test_held_out_images_are_looked_at_once_in_equally_many_batches(images: int, batch_size: int, world: int) -> None:
    ranks = [held_out_batches(images, batch_size, rank, world) for rank in range(world)]
    assert sorted(index for batches in ranks for batch in batches for index in batch) == list(range(images))
    assert len({len(batches) for batches in ranks}) == 1
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)
    assert [len(batch) for batch in ranks[0][:-2]] == [batch_size] * (len(ranks[0]) - 2)


def test_a_process_without_an_image_to_measure_on_is_told() -> None:
    assert [[*share_of(5, rank, 2)] for rank in range(2)] == [[0, 2, 4], [1, 3]]
    with pytest.raises(HuvrError, match=r"1 image\(s\) to measure on, fewer than the 2 processes: set trainer.devices 1 or less"):
        share_of(1, 0, 2)


@pytest.mark.parametrize(("images", "batch_size", "world"), [(2, 4, 3), (5, 1, 2)])
def test_too_few_held_out_images_are_looked_at_again(images: int, batch_size: int, world: int) -> None:
    ranks: list[list[Any]] = [held_out_batches(images, batch_size, rank, world) for rank in range(world)]
    assert [len(batches) for batches in ranks] == [-(-images // (world * batch_size))] * world
    assert {index % images for batches in ranks for batch in batches for index in batch} == set(range(images))
