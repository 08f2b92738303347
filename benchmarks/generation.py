"""Small generators after the same time: two objectives, the global token, TinToks or per-patch PCA, a finetuned decoder.

    python benchmarks/generation.py --data PACK --encoder runs/tiny --network vit_tiny_patch16_224 --weights FILE

Every run trains the transformer of ``generate/small.yaml`` on cached latents for ``--minutes``, at a constant learning rate, and
is measured at equal distances by ``huvr probe --task generation``, whose network names the measures. All samplers take
``--steps`` evaluations with the same guidance. PCA keeps as many numbers per patch as a TinTok has, without a global token. The
last run finetunes the decoder for ``--decoder_steps`` (``generate/decoder.yaml``) and draws the first run's samples anew.

On a CPU peak memory is that of the process, with what runs before have left in it: ``--only`` one at a time measures it well.
Runs stay in ``--runs``: what was broken off goes on from its last measuring point, what is measured is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from common import RESULTS, peak_memory_mb, reset_peak_memory, short, write_record
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image

from huvr import load
from huvr.cli import main as huvr
from huvr.files import whole
from huvr.tasks.generation.codec import save_components
from huvr.tasks.generation.dit import DiTConfig
from huvr.tasks.generation.generator import load_generator
from huvr.tasks.generation.latents import Latents
from huvr.tasks.generation.module import Generation
from huvr.tasks.generation.sampling import Sampling
from huvr.tasks.pictures import Pictures

FLOW, DECODER = "flow", "flow, decoder finetuned"
RUNS: dict[str, dict[str, Any]] = {
    FLOW: {},
    "diffusion": {"objective": "diffusion"},
    "flow, no global token": {"global_token": False},
    "flow on per-patch PCA": {"encoder": "pca", "global_token": False},
}
MEASURED = 32  # samples that speed is measured with
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Points(Callback):
    """Saves ``point-N.ckpt`` and what it took each time a share of the training time is over, the last time ending it."""

    def __init__(self, folder: Path, seconds: float, count: int, done: int, images: int) -> None:
        self.folder, self.seconds, self.count, self.done, self.images = folder, seconds, count, done, images

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        reset_peak_memory(DEVICE)
        self.begin, self.step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.perf_counter() - self.begin < self.seconds / self.count:
            return
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds, steps = time.perf_counter() - self.begin, trainer.global_step - self.step
        peak = peak_memory_mb(DEVICE)
        self.done += 1
        trainer.save_checkpoint(self.folder / f"point-{self.done}.ckpt")
        told = {
            "minutes": round(self.done * self.seconds / self.count / 60, 2), "images_seen": trainer.global_step * self.images,
            "images_per_second": round(steps * self.images / seconds, 2), "peak_memory_mb": round(peak),
        }  # fmt: skip
        (self.folder / f"point-{self.done}.json").write_text(json.dumps(told))
        trainer.should_stop = self.done == self.count
        self.begin, self.step = time.perf_counter(), trainer.global_step


def train(changes: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    """One run, from its last point on."""
    # The figures are written after the checkpoint: without them it counts as missing.
    done = next(n for n in range(options.points, -1, -1) if n == 0 or (folder / f"point-{n}.json").is_file())
    if done == options.points:
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(files("huvr.configs").joinpath("generate/small.yaml").read_text())["model"]["init_args"]
    config |= {"encoder": options.encoder, "warmup": 0.0, "decay": 0.0, "pictures_every": 0} | changes
    seed_everything(0, verbose=False)
    module = Generation(**(config | {"dit": DiTConfig(**config["dit"]), "betas": tuple(config["betas"])}))
    data = Latents(
        options.data, size=options.size, images=options.images, batch_size=options.batch_size, workers=options.workers,
        cache=options.runs / "latents",
    )  # fmt: skip
    ema = EMAWeightAveraging(decay=options.ema, use_buffers=False)
    trainer = Trainer(
        max_epochs=-1, devices=1, precision=options.precision, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[ema, Points(folder, 60 * options.minutes, options.points, done, options.batch_size)],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=folder / f"point-{done}.ckpt" if done else None, weights_only=True)


def measure(generator: Path, run: Path, options: argparse.Namespace, *extra: str) -> dict[str, Any]:
    """The record of a probe, made where it is not there."""
    if not (run / "record.json").is_file():
        network = {"network": options.network, "weights": options.weights, "mean": options.mean, "std": options.std}
        limits = {"train_images": options.images, "test_images": options.test_images}
        asked = [
            f"--generator={generator}", f"--data.root={options.data}", f"--data.workers={options.workers}",
            f"--data.cache={options.runs / 'features'}", f"--model.frechet={json.dumps(network)}", f"--run={run}",
            f"--model.sampling.guidance={options.guidance}", f"--model.sampling.steps={options.steps}",
            *(f"--data.{name}={limit}" for name, limit in limits.items() if limit), *extra,
        ]  # fmt: skip
        if status := huvr(["probe", "--task", "generation", *asked]):
            raise SystemExit(status)
    return json.loads((run / "record.json").read_text())


def speed(generator: Path, sampling: Sampling) -> dict[str, float]:
    """Sampling and drawing, without measuring."""
    trained = load_generator(generator, device=str(DEVICE))
    labels = [number % len(trained.space.classes) for number in range(MEASURED)] if trained.space.classes else None
    for _ in trained.pictures(1, labels and labels[:1], sampling):  # to warm up
        pass
    reset_peak_memory(DEVICE)
    start = time.perf_counter()
    for picture in trained.pictures(MEASURED, labels, sampling, batch_size=MEASURED):
        picture.cpu()
    seconds = time.perf_counter() - start
    return {"samples_per_second": round(MEASURED / seconds, 2), "sampling_peak_memory_mb": round(peak_memory_mb(DEVICE))}


def finetuned(options: argparse.Namespace) -> Path:
    """A decoder that learned from noisy TinToks, trained where it is not there."""
    run = options.runs / "decoder"
    if not (run / "checkpoints" / "last.ckpt").is_file():
        asked = {
            "model.encoder": options.encoder, "data.root": options.data, "data.size": options.size,
            "data.batch_size": options.batch_size, "data.workers": options.workers, "trainer.devices": 1,
            "trainer.max_steps": options.decoder_steps, "trainer.limit_val_batches": 0, "run": run,
        }  # fmt: skip
        if status := huvr(["fit", "--config", "generate/decoder.yaml", *(f"--{key}={value}" for key, value in asked.items())]):
            raise SystemExit(status)
    return run


def picture(run: Path, name: str, options: argparse.Namespace) -> None:
    """Samples beside their nearest training images, as JPEG among the results."""
    target = options.out / f"generation_{slug(name)}.jpg"
    with whole(target) as temporary:
        Image.open(run / "nearest.png").save(temporary, "JPEG", quality=90, optimize=True)


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def patch_components(options: argparse.Namespace) -> str:
    """Per-patch PCA with as many numbers as the TinToks, fitted where it is not there."""
    path = options.runs / "pca.safetensors"
    if not path.is_file():
        model = load(options.encoder)
        pictures = Pictures(options.data, size=options.size, workers=options.workers)
        pictures.setup()
        batches = (batch["image"].float() / 255 for batch in pictures.train_dataloader() if len(batch["image"]))
        save_components(batches, model.patch, model.config.tintok_dim, path)
    return f"pca:{path}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="labelled images with a held-out split, as in data.root")
    parser.add_argument("--encoder", required=True, help="a HUVR network")
    parser.add_argument("--network", required=True, help="a timm network that measures, or inception")
    parser.add_argument("--weights", default="hub", help="of that network")
    parser.add_argument("--mean", type=float, nargs=3, default=None, help="of that network's images")
    parser.add_argument("--std", type=float, nargs=3, default=None)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, of each run")
    parser.add_argument("--points", type=int, default=4, help="to be measured at")
    parser.add_argument("--only", nargs="+", choices=[*RUNS, DECODER], default=[*RUNS, DECODER])
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--images", type=int, default=None, help="to learn from")
    parser.add_argument("--test_images", type=int, default=None, help="held-out images, and samples")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=50, help="of the samplers")
    parser.add_argument("--decoder_steps", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/generation"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the pictures")
    options = parser.parse_args()

    figures = []
    for name in options.only:
        folder, decoder = options.runs / slug(FLOW if name == DECODER else name), name == DECODER
        changes = RUNS[FLOW if decoder else name]
        changes = changes | ({"encoder": patch_components(options)} if changes.get("encoder") == "pca" else {})
        train(changes, folder, options)
        sampler = "ddim" if changes.get("objective") == "diffusion" else "euler"
        extra = [f"--model.sampling.sampler={sampler}"] + ([f"--model.decoder={finetuned(options)}"] if decoder else [])
        points = []
        for point in range(options.points if decoder else 1, options.points + 1):
            run = folder / (f"decoder-{point}" if decoder else f"point-{point}")
            record = measure(folder / f"point-{point}.ckpt", run, options, *extra)
            points.append(json.loads((folder / f"point-{point}.json").read_text()) | record["metrics"])
            print(name, points[-1], flush=True)
        last = folder / f"point-{options.points}.ckpt"
        figures.append({
            "run": name, "sampler": sampler, "points": points, "samples": record["samples"],
            **speed(last, Sampling(sampler, options.steps, options.guidance)),
            "beside": {kind: rival["metrics"] for kind, rival in record["rivals"].items()},
        })  # fmt: skip
        picture(run, name, options)
    kept = ("minutes", "size", "images", "test_images", "batch_size", "precision", "ema", "guidance", "steps", "decoder_steps")
    config = {name: getattr(options, name) for name in kept} | {"encoder": short(options.encoder), "network": options.network}
    write_record("generation", short(options.data), config, figures, options.out)


if __name__ == "__main__":
    main()
