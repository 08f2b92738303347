"""Kills training at random moments, resumes it by ``--ckpt_path auto``, and asks for the weights of training left alone.

python tests/soak.py --kills 20        (what make soak runs; a few minutes on an idle core)

Everything that a checkpoint keeps of model, average, optimiser and schedule must agree to the last bit. Training is
``huvr fit`` itself, on the CPU, with a checkpoint every other step, so that many kills come while one is written. Steps limit it,
of which every eight are an epoch.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from test_resume import TINY, differing, make_photos, state

from huvr.cli import main as huvr
from huvr.commands import training  # noqa: F401 (imported once here, not in each life)


def config(photos: Path, steps: int) -> str:
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"filename": "last", "enable_version_counter": False, "every_n_train_steps": 2},
        },
    ]
    net = asdict(TINY) | {"inr_widths": list(TINY.inr_widths)}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return yaml.safe_dump({
        "model": {"class_path": "huvr.pretrain.Pretraining", "init_args": {"net": net, "phase_jitter": 0.5, "lr": 0.1}},
        "data": {
            "class_path": "huvr.data.Images",
            "init_args": {"root": str(photos), "size": 32, "sizes": [[32, 32], [24, 40]], "batch_size": 2, "workers": 1},
        },
        "trainer": {"accelerator": "cpu", "max_steps": steps, "gradient_clip_val": 0.01, "callbacks": callbacks, **quiet},
    })  # fmt: skip


def begin(folder: Path, run: str) -> int:
    """Start ``huvr fit`` in a process of its own; its number."""
    if child := os.fork():
        return child
    log = os.open(folder / f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os._exit(huvr(["fit", "--config", str(folder / "soak.yaml"), "--run", str(folder / run), "--ckpt_path", "auto"]))


def end(folder: Path, run: str, child: int) -> None:
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"training failed:\n{(folder / f'{run}.log').read_text()}")


def killed(child: int, seconds: float) -> bool:
    """Whether the process still ran after that time, and has been killed."""
    time.sleep(seconds)
    if os.waitpid(child, os.WNOHANG)[0]:
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def step_of(run: Path) -> int:
    path = run / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else 0


def soak(folder: Path, kills: int, rng: random.Random) -> None:
    """Raise SystemExit unless training that was killed so often ends as training left alone."""
    photos = make_photos(folder / "photos")
    (folder / "soak.yaml").write_text(config(photos, steps=8 * (6 + 3 * kills)))
    start = time.monotonic()
    end(folder, "whole", begin(folder, "whole"))
    undisturbed = time.monotonic() - start
    print(f"left alone: {step_of(folder / 'whole')} steps in {undisturbed:.1f} s", flush=True)
    done = 0
    while done < kills:
        # Most lives get past the start, and all together end before training does.
        if not killed(begin(folder, "killed"), seconds := rng.uniform(0, 1.4) * undisturbed / (kills + 1)):
            raise SystemExit(f"training ended after {done} kills already")
        done += 1
        print(f"kill {done} after {seconds:.2f} s, checkpoint of step {step_of(folder / 'killed')}", flush=True)
    end(folder, "killed", begin(folder, "killed"))
    whole, survivor = (state(folder / run / "checkpoints" / "last.ckpt") for run in ("whole", "killed"))
    if wrong := differing(whole, survivor):
        raise SystemExit(f"not the same: {', '.join(wrong)}")
    if left := [path.name for path in (folder / "killed" / "checkpoints").iterdir() if path.name != "last.ckpt"]:
        raise SystemExit(f"left behind: {', '.join(left)}")
    print(f"{done} kills, {len(whole)} values, all equal to the last bit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        soak(Path(name), args.kills, random.Random(args.seed))
