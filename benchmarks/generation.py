"""Small generators after the same steps: two objectives, the global token, TinToks or per-patch PCA, a finetuned decoder.

    python benchmarks/generation.py --name imagenette --data PACK --encoder runs/tiny --network vit_tiny_patch16_224 …
    huvr fit --config generate/cifar_encoder.yaml --data.root PACK
    python benchmarks/generation.py --name cifar10 --data PACK --encoder runs/cifar_encoder --size 32 --network …

Every run trains the recipe of ``generate/small.yaml``, with a transformer of ``--dit``, on cached latents for ``--steps`` at a
constant learning rate. The first is measured at equal distances on the way, the others at the end, by ``huvr probe --task
generation``, whose network names the measures. All samplers take ``--sampler_steps`` evaluations with the same guidance. PCA
keeps as many numbers per patch as a TinTok has, without a global token. The last runs draw the first run's samples anew, by
decoders trained for ``--decoder_steps`` more (``generate/decoder.yaml``), on noisy TinToks and on plain ones.

On a CPU peak memory is that of the process, with what runs before have left in it: ``--only`` one at a time measures it well.
Runs stay in ``--runs``: what was broken off goes on from its last point, what is measured is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
from huvr.files import read_torch, whole
from huvr.tasks.generation.codec import save_components
from huvr.tasks.generation.dit import DiTConfig
from huvr.tasks.generation.generator import load_generator
from huvr.tasks.generation.latents import Latents
from huvr.tasks.generation.module import Generation
from huvr.tasks.generation.sampling import Sampling
from huvr.tasks.pictures import Pictures

FLOW = "flow"
RUNS: dict[str, dict[str, Any]] = {
    FLOW: {},
    "diffusion": {"objective": "diffusion"},
    "flow, no global token": {"global_token": False},
    "flow on per-patch PCA": {"encoder": "pca", "global_token": False},
}
DECODERS = {"flow, decoder finetuned on noise": 0.8, "flow, decoder finetuned without": 0.0}  # and the noise's deviation
MEASURED = 32  # samples that speed is measured with
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Points(Callback):
    """Saves ``point-N.ckpt`` and what it took each time a share of the steps is over."""

    def __init__(self, folder: Path, steps: int, count: int, images: int) -> None:
        self.folder, self.images = folder, images
        self.ends = [round(steps * (number + 1) / count) for number in range(count)]

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        reset_peak_memory(DEVICE)
        self.begin, self.step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step not in self.ends:
            return
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        speed, peak = (step - self.step) * self.images / (time.perf_counter() - self.begin), peak_memory_mb(DEVICE)
        number = self.ends.index(step) + 1
        trainer.save_checkpoint(self.folder / f"point-{number}.ckpt")
        told = {"images_seen": step * self.images, "images_per_second": round(speed, 2), "peak_memory_mb": round(peak)}
        (self.folder / f"point-{number}.json").write_text(json.dumps(told))
        self.begin, self.step = time.perf_counter(), step


def train(changes: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    """One run, from its last point on."""
    # The figures are written after the checkpoint: without them it counts as missing.
    done = next(n for n in range(options.points, -1, -1) if n == 0 or (folder / f"point-{n}.json").is_file())
    if done == options.points:
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(files("huvr.configs").joinpath("generate/small.yaml").read_text())["model"]["init_args"]
    shape = config.pop("dit") | dict(zip(("depth", "width", "heads"), options.dit, strict=True))
    config |= {"encoder": options.encoder, "warmup": 0.0, "decay": 0.0, "pictures_every": 0} | changes
    seed_everything(0, verbose=False)
    module = Generation(**(config | {"dit": DiTConfig(**shape), "betas": tuple(config["betas"])}))
    data = Latents(
        options.data, size=options.size, images=options.images, batch_size=options.batch_size, workers=options.workers,
        cache=options.runs / "latents",
    )  # fmt: skip
    ema = EMAWeightAveraging(decay=options.ema, use_buffers=False)
    points = Points(folder, options.steps, options.points, options.batch_size)
    trainer = Trainer(
        max_steps=options.steps, devices=1, precision=options.precision, gradient_clip_val=1.0, callbacks=[ema, points],
        logger=False, enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=folder / f"point-{done}.ckpt" if done else None, weights_only=True)


def measure(generator: Path, run: Path, options: argparse.Namespace, **extra: Any) -> dict[str, Any]:
    """The record of a probe, made where it is not there."""
    if not (run / "record.json").is_file():
        network = {"network": options.network, "weights": options.weights, "mean": options.mean, "std": options.std}
        limits = {"train_images": options.images, "test_images": options.test_images}
        asked = [
            f"--generator={generator}", f"--data.root={options.data}", f"--data.workers={options.workers}",
            f"--data.cache={options.runs / 'features'}", f"--model.frechet={json.dumps(network)}", f"--run={run}",
            f"--model.sampling.guidance={options.guidance}", f"--model.sampling.steps={options.sampler_steps}",
            *(f"--data.{name}={limit}" for name, limit in limits.items() if limit),
            *(f"--model.{name}={value}" for name, value in extra.items()),
        ]  # fmt: skip
        if status := huvr(["probe", "--task", "generation", *asked]):
            raise SystemExit(status)
    return json.loads((run / "record.json").read_text())


def speed(generator: Path, sampling: Sampling) -> dict[str, float]:
    """Sampling and drawing, without measuring."""
    trained = load_generator(generator, device=str(DEVICE))
    labels = [number % len(trained.space.classes) for number in range(MEASURED)] if trained.space.classes else None
    seconds = []
    for _ in range(4):  # the first to warm up
        reset_peak_memory(DEVICE)
        start = time.perf_counter()
        for picture in trained.pictures(MEASURED, labels, sampling, batch_size=MEASURED):
            picture.cpu()
        seconds.append(time.perf_counter() - start)
    rate = round(MEASURED / statistics.median(seconds[1:]), 2)
    return {"samples_per_second": rate, "sampling_peak_memory_mb": round(peak_memory_mb(DEVICE))}


def finetuned(tau: float, options: argparse.Namespace) -> Path:
    """A decoder that learned from TinToks with noise of deviation ``tau``, trained where it is not there."""
    run = options.runs / f"decoder-{tau:g}"
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file() or read_torch(last)["global_step"] < options.decoder_steps:
        average = {"class_path": "EMAWeightAveraging", "init_args": {"decay": options.ema, "use_buffers": False}}
        asked = {
            "model.encoder": options.encoder, "model.tau": tau, "model.optimizer": "muon", "model.lr": options.decoder_lr,
            "data.root": options.data, "data.size": options.size, "data.batch_size": options.batch_size,
            "data.workers": options.workers, "trainer.devices": 1, "trainer.precision": options.precision,
            "trainer.max_epochs": -1, "trainer.max_steps": options.decoder_steps, "trainer.limit_val_batches": 0,
            "trainer.callbacks": json.dumps([average]), "run": run, "ckpt_path": "auto",
        }  # fmt: skip
        if status := huvr(["fit", "--config", "generate/decoder.yaml", *(f"--{key}={value}" for key, value in asked.items())]):
            raise SystemExit(status)
    return run


def picture(run: Path, name: str, options: argparse.Namespace) -> None:
    """Samples beside their nearest training images, as JPEG among the results; small ones twice as large."""
    factor = 2 if options.size < 64 else 1
    target = options.out / f"generation_{options.name}_{slug(name)}.jpg"
    with whole(target) as temporary:
        shown: Image.Image = Image.open(run / "nearest.png")
        shown = shown.resize((factor * shown.width, factor * shown.height), Image.Resampling.NEAREST)
        shown.save(temporary, "JPEG", quality=90, optimize=True)


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def patch_components(options: argparse.Namespace) -> str:
    """Per-patch PCA with as many numbers as the TinToks, fitted where it is not there."""
    path = options.runs / "pca.safetensors"
    if not path.is_file():
        model = load(options.encoder)
        pictures = Pictures(options.data, size=options.size, workers=options.workers)
        pictures.setup()
        batches = (batch["image"].float() / 255 for batch in pictures.train_dataloader() if batch)
        save_components(batches, model.patch, model.config.tintok_dim, path)
    return f"pca:{path}"


def figures_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one of the runs, or one of the decoders."""
    tau = DECODERS.get(name)
    changes = RUNS[name if tau is None else FLOW]
    changes = changes | ({"encoder": patch_components(options)} if changes.get("encoder") == "pca" else {})
    folder = options.runs / slug(name if tau is None else FLOW)
    train(changes, folder, options)
    sampler = "ddim" if changes.get("objective") == "diffusion" else "euler"
    extra: dict[str, Any] = {"sampling.sampler": sampler} | ({} if tau is None else {"decoder": finetuned(tau, options)})
    alone = "objective" in changes  # the latents are the first run's
    points = []
    for point in range(1 if name == FLOW else options.points, options.points + 1):
        run = folder / (f"point-{point}" if tau is None else f"decoder-{tau:g}")
        record = measure(folder / f"point-{point}.ckpt", run, options, beside=point == options.points and not alone, **extra)
        points.append(json.loads((folder / f"point-{point}.json").read_text()) | record["metrics"])
        print(name, points[-1], flush=True)
    picture(run, name, options)
    return {
        "run": name, "sampler": sampler, "points": points, "samples": record["samples"],
        **speed(folder / f"point-{options.points}.ckpt", Sampling(sampler, options.sampler_steps, options.guidance)),
        "beside": {kind: rival["metrics"] for kind, rival in record["rivals"].items()},
    }  # fmt: skip


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Raise SystemExit where the runs of a folder were made with other settings."""
    path, settings = folder / "settings.json", json.loads(json.dumps(settings))
    if path.is_file() and (found := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{folder} was begun with {found}: go on with these, or remove the folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the record, generation_NAME.json, and of the pictures beside it")
    parser.add_argument("--data", required=True, help="labelled images with a held-out split, as in data.root")
    parser.add_argument("--encoder", required=True, help="a HUVR network")
    parser.add_argument("--network", required=True, help="a timm network that measures, or inception")
    parser.add_argument("--weights", default="hub", help="of that network")
    parser.add_argument("--mean", type=float, nargs=3, default=None, help="of that network's images")
    parser.add_argument("--std", type=float, nargs=3, default=None)
    parser.add_argument("--only", nargs="+", choices=[*RUNS, *DECODERS], default=[*RUNS, *DECODERS])
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--images", type=int, default=None, help="to learn from, and to be measured against")
    parser.add_argument("--test_images", type=int, default=None, help="held-out images, and samples")
    parser.add_argument("--dit", type=int, nargs=3, default=[6, 192, 3], help="depth, width and heads of the transformer")
    parser.add_argument("--steps", type=int, default=3000, help="of training, of each run")
    parser.add_argument("--points", type=int, default=4, help="to measure the first run at")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--sampler_steps", type=int, default=50)
    parser.add_argument("--decoder_steps", type=int, default=1000)
    parser.add_argument("--decoder_lr", type=float, default=8e-3, help="of Muon, per 256 images")
    parser.add_argument("--runs", type=Path, default=None, help="folder of the runs; runs/generation-NAME if nothing is said")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the pictures")
    options = parser.parse_args()
    options.runs = options.runs or Path(f"runs/generation-{options.name}")
    kept = (
        "size", "images", "test_images", "dit", "steps", "points", "batch_size", "precision", "ema", "guidance", "sampler_steps",
        "decoder_steps", "decoder_lr", "network", "data", "encoder",
    )  # fmt: skip
    settings = {name: getattr(options, name) for name in kept}
    claim(options.runs, settings)
    figures = [figures_of(name, options) for name in options.only]
    config = {name: short(value) if isinstance(value, str) else value for name, value in settings.items()}
    write_record(f"generation_{options.name}", short(options.data), config, figures, options.out)


if __name__ == "__main__":
    main()
