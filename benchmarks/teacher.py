"""Several steps on a batch that the teacher looks at once: how much faster a step is, and what it costs in held-out PSNR.

python benchmarks/teacher.py --data imagenet1k-sample-256/train.parquet --teacher vit_tiny_patch16_224 --weights FILE --steps 1200

The student is small enough that its step costs about as much as the teacher's pass, as that of ViT-B does beside ViT-L. Each
number of ``echoes`` trains for the same steps, and once more for as many as it takes in the time of the training without echoes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from common import RESULTS, short, write_record
from lightning.pytorch import Callback, Trainer
from train_step import Clock, random_teacher
from trainings import Finished

from huvr.data import Images
from huvr.data.loader import ROUND
from huvr.losses import LossWeights
from huvr.model import HUVRConfig
from huvr.pretrain import Pretraining
from huvr.teacher import TeacherConfig

TURNS = 3  # of the measurement of time, so that a busy machine hits all
WEIGHTS = LossWeights(encoder_cls=0.005, encoder_patches=0.005, decoder_cls=0.001, decoder_patches=0.001, koleo=0)


OFF = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


def fit(args: argparse.Namespace, teacher: TeacherConfig, echoes: int, steps: int, *callbacks: Callback) -> tuple[Any, Images]:
    """Train; the module and its data."""
    torch.manual_seed(0)
    net = HUVRConfig(
        image_size=args.size, width=args.width, depth=args.depth, heads=args.width // 32, decoder_width=args.width,
        decoder_depth=2, decoder_heads=args.width // 32, decoder_hidden=4 * args.width, inr_widths=(64, 64, 64),
    )  # fmt: skip
    module = Pretraining(net, [teacher], WEIGHTS, optimizer="muon", lr=3.2e-2, warmup=0.05, pictures_every=0)
    data = Images(args.data, size=args.size, batch_size=args.batch, echoes=echoes, workers=args.workers)
    trainer = Trainer(
        max_steps=steps, limit_val_batches=0, gradient_clip_val=1.0, devices=1, precision=args.precision,
        callbacks=[*callbacks], **OFF,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.fit(module, data)
    return module, data


def psnr(args: argparse.Namespace, teacher: TeacherConfig, echoes: int, steps: int) -> float:
    """Of the held-out images, after a training."""
    module, data = fit(args, teacher, echoes, steps)
    [figures] = Trainer(devices=1, **OFF).validate(module, data, verbose=False)  # type: ignore[arg-type]
    return round(figures["val/psnr"], 3)


def seconds_of_steps(args: argparse.Namespace, teacher: TeacherConfig) -> dict[str, float]:
    """Median over turns of the seconds of a step, over whole rounds, by number of echoes."""
    found: dict[int, list[float]] = {echoes: [] for echoes in args.echoes}
    for _ in range(args.turns):
        for echoes in args.echoes:
            warm, timed = ROUND * echoes, 2 * ROUND * echoes
            clock = Clock(warm)
            fit(args, teacher, echoes, warm + timed, clock)
            found[echoes].append(clock.seconds / timed)
    return {str(echoes): round(statistics.median(each), 4) for echoes, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", default="photos", help="as data.root of huvr fit")
    parser.add_argument("--teacher", default="vit_tiny_patch16_224", help="a timm network")
    parser.add_argument("--weights", help="file with its weights; random without")
    parser.add_argument("--echoes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="32-true", help="as trainer.precision of huvr fit")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if 1 not in args.echoes:
        parser.error("--echoes needs 1, to compare with")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    settings = {name: value for name, value in vars(args).items() if name not in ("data", "weights", "out")}
    settings |= {"data": short(args.data), "weights": short(args.weights) if args.weights else "random"}
    name = "teacher" + ("_cuda" if torch.cuda.is_available() else "")
    finished = Finished(args.out, name, settings)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = TeacherConfig(args.teacher, args.weights) if args.weights else random_teacher(args.teacher, Path(folder))
        seconds = finished("seconds of a step", partial(seconds_of_steps, args, teacher))
        for echoes in args.echoes:
            faster = seconds["1"] / seconds[str(echoes)]
            runs = {"same_steps": args.steps, "same_time": round(args.steps * faster)}
            figures[str(echoes)] = {"seconds_of_a_step": seconds[str(echoes)], "times_faster": round(faster, 3)}
            for run, steps in runs.items():
                name_of_run, make = f"{echoes} echoes, {steps} steps", partial(psnr, args, teacher, echoes, steps)
                figures[str(echoes)][run] = {"steps": steps, "psnr": finished(name_of_run, make)}
            print(echoes, figures[str(echoes)], flush=True)
    write_record(name, settings["data"], settings, figures, args.out)
    finished.close()


if __name__ == "__main__":
    main()
