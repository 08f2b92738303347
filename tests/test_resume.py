"""Training that broke off in the middle of an epoch ends with the weights of training that did not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from safetensors.torch import save_file

from huvr.commands.checkpoints import check_checkpoint
from huvr.data import Images
from huvr.errors import HuvrError
from huvr.model import HUVRConfig
from huvr.optim import OptimizerName, warmup_cosine
from huvr.pretrain import Pretraining
from huvr.safety import LastCheckpoint
from huvr.teacher import Teacher, TeacherConfig

TINY = HUVRConfig(
    image_size=32, patch=8, width=48, depth=1, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_heads=3,
    decoder_hidden=96, inr_widths=(16, 16, 16), inr_frequencies=4, inr_max_frequency=8.0,
)  # fmt: skip


class Crash(Exception):
    """A machine that goes away."""


class CrashAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Crash


def train(
    photos: Path, run: Path, seed: int, *callbacks: Callback, resume: Path | None = None, accumulate: int = 1,
    optimizer: OptimizerName = "adamw", teachers: Sequence[TeacherConfig] = (), echoes: int = 1, batch_size: int = 2,
    validate: float = 4, trainer: dict[str, Any] | None = None, **options: Any,
) -> None:  # fmt: skip
    """Two epochs of 8 different batches; a checkpoint ``run/step=N.ckpt`` every other step."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    module = Pretraining(TINY, teachers, optimizer=optimizer, phase_jitter=0.5, pictures_every=0, **{"lr": 0.1} | options)
    data = Images(
        str(photos), sizes=[(32, 32), (24, 40)], size=32, colour=0.4, colour_on_device=True, batch_size=batch_size,
        echoes=echoes, workers=2, held_out=0.1,
    )  # fmt: skip
    checkpoints = ModelCheckpoint(run, "{step}", every_n_train_steps=2, save_top_k=-1, monitor=None)
    Trainer(
        default_root_dir=run, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=0.01, accumulate_grad_batches=accumulate, val_check_interval=validate,
        callbacks=[EMAWeightAveraging(decay=0.9), checkpoints, *callbacks], **{"max_epochs": 2} | (trainer or {}),
    ).fit(module, data, ckpt_path=resume)  # fmt: skip


def make_photos(folder: Path) -> Path:
    """18 pictures of noise in a new folder."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(18):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("resume") / "photos")


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, inner in items for name, leaf in flat(inner, f"{path}/{key}").items()}
    return {path: value}


def state(path: Path) -> dict[str, Any]:
    """All that training goes on from, by name."""
    checkpoint = torch.load(path, weights_only=True)
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return flat({name: checkpoint[name] for name in kept})


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the last bit, or in one of them only."""

    def equal(value: Any, another: Any) -> bool:
        return torch.equal(value, another) if isinstance(value, torch.Tensor) else value == another

    return [name for name in one.keys() | other.keys() if not (name in one and name in other and equal(one[name], other[name]))]


@pytest.mark.parametrize(
    ("optimizer", "accumulate", "crash", "saved", "last"),
    [("adamw", 1, 3, 2, 16), ("adamw", 1, 9, 8, 16), ("muon", 1, 13, 12, 16), ("adamw", 2, 7, 6, 8)],
)
def test_a_resumed_run_equals_one_that_never_stopped(
    photos: Path, tmp_path: Path, optimizer: OptimizerName, accumulate: int, crash: int, saved: int, last: int
) -> None:
    train(photos, tmp_path / "whole", 0, accumulate=accumulate, optimizer=optimizer)
    with pytest.raises(Crash):
        train(photos, tmp_path / "broken", 0, CrashAt(crash), accumulate=accumulate, optimizer=optimizer)
    # Other global random numbers than at that point of the whole run: nothing may hang on them.
    checkpoint = tmp_path / "broken" / f"step={saved}.ckpt"
    train(photos, tmp_path / "resumed", 1, resume=checkpoint, accumulate=accumulate, optimizer=optimizer)

    runs = (("whole", last), ("resumed", last), ("whole", saved))
    expected, found, before = (state(tmp_path / run / f"step={step}.ckpt") for run, step in runs)
    assert not differing(expected, found)
    assert not multiprocessing.active_children(), "workers outlive training"
    weights = [name for name in expected if name.endswith("weight") and "model_state" in name]
    assert weights
    assert not any(torch.equal(expected[name], before[name]) for name in weights)
    assert not any(torch.equal(expected[name], expected[name.replace("current_model_state", "state_dict")]) for name in weights)


class StopAfter(Callback):
    """As a limit of time does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = batch_idx + 1 >= self.batches


@pytest.mark.parametrize(("accumulate", "validate", "stop"), [(1, 4, 5), (1, 8, 5), (2, 8, 5), (3, 8, 8), (2, 3, 3)])
def test_a_run_that_stops_within_an_epoch_goes_on_from_there(
    photos: Path, tmp_path: Path, accumulate: int, validate: int, stop: int
) -> None:
    """Though Lightning takes the epoch for a whole one, and the stop may come between the batches of a step."""
    options: dict[str, Any] = {"accumulate": accumulate, "validate": validate}
    train(photos, tmp_path / "whole", 0, LastCheckpoint(), **options)
    train(photos, tmp_path / "stopped", 0, StopAfter(stop), LastCheckpoint(), **options)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == -(-stop // accumulate)
    train(photos, tmp_path / "resumed", 1, LastCheckpoint(), resume=last, **options)
    runs = (tmp_path / run / "checkpoints" / "last.ckpt" for run in ("whole", "resumed"))
    expected, found = map(state, runs)
    assert expected["/global_step"] == 2 * -(-8 // accumulate)
    assert not differing(expected, found)


@pytest.mark.parametrize("validates", [0, 1])
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 1}, {"max_epochs": 3, "max_steps": 1}])
@pytest.mark.parametrize(("ends", "accumulate"), [("crash", 1), ("stop", 3)])
def test_a_run_goes_on_from_the_end_of_an_epoch(
    photos: Path, tmp_path: Path, validates: int, accumulate: int, limits: dict[str, int], ends: str
) -> None:
    """Lightning takes none of its epochs for done where steps limit the training."""
    epoch = -(-8 // accumulate)
    trainer = limits | {"limit_val_batches": validates} | ({"max_steps": 3 * epoch} if "max_steps" in limits else {})
    options: dict[str, Any] = {"accumulate": accumulate, "validate": 8, "trainer": trainer}
    train(photos, tmp_path / "whole", 0, LastCheckpoint(), **options)
    if ends == "stop":
        train(photos, tmp_path / "broken", 0, StopAfter(8), LastCheckpoint(), **options)
    else:
        with pytest.raises(Crash):
            train(photos, tmp_path / "broken", 0, CrashAt(epoch + 1), LastCheckpoint(), **options)
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == epoch
    train(photos, tmp_path / "resumed", 1, LastCheckpoint(), resume=last, **options)
    expected, found = (state(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "resumed"))
    assert expected["/global_step"] == 3 * epoch
    assert not differing(expected, found)


class Seen(Callback):
    """What is trained on: epoch, number and sum of the images of each batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append((trainer.current_epoch, batch_idx, int(batch["image"].sum())))


@pytest.mark.parametrize("validates", [0, 1])
@pytest.mark.parametrize("first", [{"max_steps": 8}, {"max_epochs": 1}, {"max_steps": 5}])
@pytest.mark.parametrize("then", [{"max_steps": 20}, {"max_epochs": 3}])
def test_a_longer_training_sees_what_it_would_have_seen(
    photos: Path, tmp_path: Path, validates: int, first: dict[str, int], then: dict[str, int]
) -> None:
    def seen(run: str, limits: dict[str, int], resume: Path | None = None) -> list[tuple[int, int, int]]:
        found, trainer = Seen(), {"max_epochs": -1, "limit_val_batches": validates} | limits
        train(photos, tmp_path / run, 0, found, LastCheckpoint(), resume=resume, validate=1.0, trainer=trainer)
        return found.batches

    whole, begun = seen("whole", then), seen("first", first)
    assert begun + seen("second", then, tmp_path / "first" / "checkpoints" / "last.ckpt") == whole


class TerminatedAt(Callback):
    """``kill`` in the middle of a step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("accumulate", "validate", "batch"), [(1, 4, 4), (1, 4, 3), (1, 8, 7), (1, 8, 10), (3, 8, 4)])
def test_a_terminated_run_goes_on_from_the_step_it_was_in(
    photos: Path, tmp_path: Path, accumulate: int, validate: int, batch: int
) -> None:
    """Also from that before a validation, in which no more time is spent."""
    options: dict[str, Any] = {"accumulate": accumulate, "validate": validate}
    before = signal.getsignal(signal.SIGTERM)
    train(photos, tmp_path / "whole", 0, LastCheckpoint(), **options)
    with pytest.raises(SIGTERMException):
        train(photos, tmp_path / "stopped", 0, TerminatedAt(batch), LastCheckpoint(), **options)
    assert signal.getsignal(signal.SIGTERM) is before
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == batch // accumulate + 1
    train(photos, tmp_path / "resumed", 1, LastCheckpoint(), resume=last, **options)
    expected, found = (state(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "resumed"))
    assert expected["/global_step"] == 2 * -(-8 // accumulate)
    assert not differing(expected, found)


def test_a_checkpoint_due_between_the_batches_of_a_step_waits_for_it(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate": 2, "validate": 3}
    train(photos, tmp_path / "whole", 0, LastCheckpoint(), **options)
    with pytest.raises(Crash):  # after the validation of batch 3, and the step that ends with batch 4
        train(photos, tmp_path / "broken", 0, CrashAt(2), LastCheckpoint(), **options)
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    train(photos, tmp_path / "resumed", 1, LastCheckpoint(), resume=last, **options)
    expected, found = (state(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "resumed"))
    assert not differing(expected, found)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_follows_the_options_it_is_given(photos: Path, tmp_path: Path, optimizer: OptimizerName) -> None:
    train(photos, tmp_path / "first", 0, optimizer=optimizer)
    changed: dict[str, Any] = {"lr": 0.3, "weight_decay": 0.5, "betas": (0.8, 0.99), "batch_size": 4}
    with pytest.warns(UserWarning, match="steps of 4 images, of 2 in the checkpoint: .* some images come twice or not at all"):
        train(photos, tmp_path / "second", 0, resume=tmp_path / "first" / "step=8.ckpt", optimizer=optimizer, **changed)
    checkpoint = torch.load(tmp_path / "second" / "step=10.ckpt", weights_only=True)
    (group,), peak = checkpoint["optimizer_states"][0]["param_groups"], 0.3 * 4 / 256
    assert (group["initial_lr"], group["weight_decay"], group["betas"]) == (peak, 0.5, (0.8, 0.99))
    assert group["lr"] == peak * warmup_cosine(10, 2 * 4, 0.1 * 2 * 4, 1e-7 / peak)
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [peak]


def test_a_checkpoint_between_the_batches_of_a_step_is_none_to_go_on_from(photos: Path, tmp_path: Path) -> None:
    own = ModelCheckpoint(tmp_path / "checkpoints", "{step}", monitor="val/psnr", save_top_k=-1)
    train(photos, tmp_path, 0, own, LastCheckpoint(), accumulate=2, validate=3, trainer={"max_epochs": 1})
    between, whole = (tmp_path / "checkpoints" / f"step={step}.ckpt" for step in (1, 3))  # after 3 batches, and after 6
    assert check_checkpoint(whole, training=True) == 3
    assert check_checkpoint(between, training=False) == 1
    with pytest.raises(HuvrError, match=r"step=1\.ckpt: written between the batches of a step, whose gradients it has not"):
        check_checkpoint(between, training=True)


def test_the_time_of_a_session_counts_anew(photos: Path, tmp_path: Path) -> None:
    def trained(run: str, resume: Path | None = None) -> int:
        train(photos, tmp_path / run, 0, LastCheckpoint(), resume=resume, trainer={"max_epochs": 2000, "max_time": "00:00:00:02"})
        return torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]

    first = trained("first")
    assert trained("second", tmp_path / "first" / "checkpoints" / "last.ckpt") > first


@pytest.mark.parametrize(("first", "then"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_does_not_go_on(photos: Path, tmp_path: Path, first: OptimizerName, then: OptimizerName) -> None:
    train(photos, tmp_path / "first", 0, optimizer=first, trainer={"max_steps": 2})
    with pytest.raises(HuvrError, match=f"ckpt_path: trained by {first}, not by {then}: go on with the same optimizer"):
        train(photos, tmp_path / "other", 0, optimizer=then, resume=tmp_path / "first" / "step=2.ckpt")


def test_training_does_not_go_on_with_averaged_weights(photos: Path, tmp_path: Path) -> None:
    train(photos, tmp_path / "first", 0, trainer={"max_steps": 2})
    plain = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[LastCheckpoint()], max_epochs=2)
    data = Images(str(photos), size=32, batch_size=2, workers=0)
    with pytest.raises(
        HuvrError, match="ckpt_path: the checkpoint keeps averaged weights: go on with the callback that averages"
    ):
        plain.fit(Pretraining(TINY), data, ckpt_path=tmp_path / "first" / "step=2.ckpt")
    plain.validate(Pretraining(TINY), data, ckpt_path=tmp_path / "first" / "step=2.ckpt", verbose=False)


def test_a_run_with_echoes_resumes_among_them_and_its_teacher_looks_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "teacher.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    looks, look = [], Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda *arguments: looks.append(1) or look(*arguments))  # type: ignore[func-returns-value]
    options: dict[str, Any] = {"teachers": [TeacherConfig("test_vit", str(file))], "echoes": 2}
    train(photos, tmp_path / "whole", 0, **options)
    assert len(looks) == 2 * 8
    with pytest.raises(Crash):
        train(photos, tmp_path / "broken", 0, CrashAt(7), **options)
    looks.clear()
    train(photos, tmp_path / "resumed", 1, resume=tmp_path / "broken" / "step=6.ckpt", **options)
    assert len(looks) == 2 + 4 + 8  # of the echoes of the first round, two are left, and no teacher knows them
    expected, found = (state(tmp_path / run / "step=32.ckpt") for run in ("whole", "resumed"))
    assert not differing(expected, found)


def test_training_that_is_killed_at_random_moments_loses_nothing() -> None:
    """The soak in small, see ``make soak``."""
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout
