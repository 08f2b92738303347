"""HUVR beside TransINR, GINR and ANR: the same images in the same order, the same optimiser, schedule and number of steps.

    python benchmarks/hypernets.py --data PACK/train.parquet --minutes 60
    python benchmarks/hypernets.py --data PACK/train.parquet --sizes paper --steps 20000 --precision bf16-mixed   # on a GPU

The small networks have about one number for twelve of the image, as many parameters as each other, and patches of one size;
those of the paper have the sizes of their papers, with patches that tile the image, and three of them keep more numbers than the
image has. Dropout and jittered coordinates, which belong to trainings of hundreds of epochs, are left out for all. Each network
tries every learning rate of one grid for a quarter of the steps; the best on held-out pictures kept apart for it is trained anew,
and measured on the other held-out pictures. Beside each that is smaller than the image stand per-patch PCA with as many numbers,
and JPEG of at most as many bytes as these take in fp16.

Whatever is measured lies in a file in ``--out`` at once: the same command goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from common import RESULTS, peak_memory_mb, random_crops, reset_peak_memory, write_record
from pictures import load_pictures
from torch import Tensor
from trainings import CLIP, Crops, Finished, Precision, fit

from huvr.files import whole
from huvr.hypernets.anr import ANR
from huvr.hypernets.coordinate_mlp import INRConfig
from huvr.hypernets.ginr import GINR
from huvr.hypernets.interface import HyperINR
from huvr.hypernets.module import HyperNetwork
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.tokenizer import TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig
from huvr.hypernets.transinr import TransINR
from huvr.metrics import psnr
from huvr.model import PRESETS, HUVRConfig
from huvr.optim import OptimizerName, make_optimizer
from huvr.plots import curves
from huvr.tasks.rivals import PatchPCA, jpeg

Networks = dict[str, Callable[[], HyperINR]]
TRIAL = 4  # a learning rate is tried for one part in so many of the steps
POINTS = 8  # of a curve
WARMUP = 0.1  # share of the steps


def small_patch(size: int) -> int:
    return 16 if size >= 128 else 8


def small(size: int) -> Networks:
    """Networks of about 3.7 million parameters, for a processor; images of ``size`` pixels."""
    patch, numbers = small_patch(size), size**2 // 4
    tokenizer, transformer = TokenizerConfig(size, patch, 0), TransformerConfig(192, 8, 3, 64, 768)
    huvr = HUVRConfig(
        image_size=size, patch=patch, width=192, depth=6, heads=3, tintok_dim=round(numbers / ((size // patch) ** 2 + 1)),
        decoder_width=192, decoder_depth=2, decoder_hidden=768, inr_widths=(128, 128, 128),
    )  # fmt: skip
    return {
        "TransINR": lambda: TransINR(
            tokenizer, transformer, INRConfig(5, 64, 16, 1024.0), groups=min(64, 2 ** round(math.log2(numbers / 256)))
        ),
        "GINR": lambda: GINR(tokenizer, transformer, INRConfig(5, 64, 16, 128.0), rank=numbers // 64),
        "ANR": lambda: ANR(tokenizer, TransformerConfig(128, 8, 4, 32, 512), instance_tokens=numbers // 128),
        **both(huvr),
    }


def paper(size: int) -> Networks:
    """Networks of the sizes of their papers, with patches of 9 and 16 pixels; images of ``size`` pixels."""
    tokenizer = TokenizerConfig(size, 9, 0)
    return {
        "TransINR": lambda: TransINR(tokenizer),
        "GINR": lambda: GINR(tokenizer, TransformerConfig(qkv_bias=True)),
        "ANR": lambda: ANR(tokenizer),
        **both(replace(PRESETS["base"], image_size=size)),
    }


def both(config: HUVRConfig) -> Networks:
    return {
        "HUVR, released modulation": lambda: PatchwiseHUVR(replace(config, modulation="released")),
        "HUVR (ours)": lambda: PatchwiseHUVR(config),
    }


SIZES: dict[str, tuple[Callable[[int], Networks], int]] = {"small": (small, 16), "paper": (paper, 144)}  # and the step of --size


def cost(
    name: str,
    sizes: str,
    size: int,
    batch: int,
    precision: Precision,
    optimizer_name: OptimizerName,
    threads: int,
    repeats: int = 3,
) -> dict[str, float]:
    """Parameters, numbers an image, images per second and memory in MB of training as :func:`fit` does it, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.rand(batch, 3, size, size, device=device)
    reset_peak_memory(device)
    before, seconds = peak_memory_mb(device), []
    net = SIZES[sizes][0](size)[name]().to(device)
    optimizer = make_optimizer(optimizer_name, net.parameters(), 1e-4, 0.0, (0.9, 0.999))
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            parameters = net.encode(images)
            loss = net.loss(net.render(parameters), images)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "numbers": parameters.numbers,
        "parameters": sum(p.numel() for p in net.parameters()),
        "images_per_second": round(batch / statistics.median(seconds[1:]), 2),
        "peak_memory_mb": round(peak_memory_mb(device) - before),
    }


def apart(name: str, *about: Any) -> dict[str, float]:
    """:func:`cost` in a process of its own, whose memory holds nothing else."""
    with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        return pool.submit(cost, name, *about).result()


def steps_for(minutes: float, speeds: list[float], batch: int, rates: int, measured: int) -> int:
    """Steps, a multiple of ``TRIAL * POINTS``, with which all networks together take about so many minutes.

    Args:
        minutes: for everything.
        speeds: images per second of each network in training; measuring goes three times as fast.
        batch: images of a step.
        rates: learning rates to try.
        measured: images of one measurement.
    """
    seconds_an_image = sum(1 / speed for speed in speeds)
    images = 60 * minutes / seconds_an_image - (POINTS + rates) * measured / 3
    step = TRIAL * POINTS
    return max(1, int(images / (batch * (1 + rates / TRIAL)) / step)) * step


def rivals(pictures: list[Tensor], test: Tensor, patch: int, numbers: int) -> dict[str, float]:
    """PSNR of per-patch PCA with that many numbers an image, and of JPEG of at most their bytes in fp16, with its mean size.

    Nothing for as many numbers as the image itself has, or more.
    """
    size = test.shape[-1]
    if numbers >= 3 * size**2:
        return {}
    components = max(1, numbers // (size // patch) ** 2)
    rng = np.random.default_rng(1)
    pca = PatchPCA((random_crops(pictures, 50, size, rng) for _ in range(20)), patch, components)
    drawn, sizes = jpeg(test, 2 * numbers)
    return {
        "patch_pca": round(psnr(pca.reconstruct(test), test).mean().item(), 3),
        "jpeg": round(psnr(drawn, test).mean().item(), 3),
        "jpeg_bytes": round(statistics.mean(sizes)),
    }


def plot(figures: dict[str, Any], batch: int) -> str:
    """The curves, and as level lines what the rivals make of as many numbers as our network has."""
    series = {name: [(step, value, "") for step, value in row["curve"]] for name, row in figures.items()}
    ours = figures["HUVR (ours)"]
    for key, label in {"patch_pca": "per-patch PCA", "jpeg": "JPEG"}.items():
        series[f"{label}, size of HUVR (ours)"] = [(step, ours["rivals"][key], "") for step, _ in ours["curve"]]
    return curves(series, f"steps of {batch} images", "PSNR of held-out images, dB", logarithmic=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a Parquet file of images, whose last tenth is held out, or photos")
    parser.add_argument("--size", type=int, default=144, help="side of the crops in pixels")
    parser.add_argument("--sizes", choices=SIZES, default="small", help="of the networks")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="of each training")
    length.add_argument("--minutes", type=float, help="for everything; the steps follow from it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=get_args(Precision), default="32-true")
    parser.add_argument("--optimizer", choices=get_args(OptimizerName), default="adamw", help="adamw is the papers' Adam")
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4, 1e-3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", help="of the record; hypernets by default, hypernets_cuda on a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the plot")
    args = parser.parse_args()
    make, step = SIZES[args.sizes]
    if args.size < 32 or args.size % step:
        parser.error(f"--size {args.size}: expected a multiple of {step}, 32 or more, for --sizes {args.sizes}")
    if args.batch < 1 or (args.steps is not None and args.steps < TRIAL):
        parser.error(f"--steps {args.steps}, --batch {args.batch}: expected {TRIAL} steps and 1 image or more")
    torch.set_num_threads(args.threads)
    pictures, held_out, data = load_pictures(args.data, shorter=round(args.size * 10 / 9))
    if len(held_out) < 2:
        parser.error(f"--data {args.data}: {len(held_out)} pictures held out; 2 are needed, one to choose the learning rate on")
    chosen_on, test = (random_crops(held_out[part::2], 48, args.size, np.random.default_rng(part)) for part in (0, 1))
    networks, patch = make(args.size), 16 if args.sizes == "paper" else small_patch(args.size)

    name = args.name or "hypernets" + ("_cuda" if torch.cuda.is_available() else "")
    options = {key: value for key, value in vars(args).items() if key not in ("out", "data", "name")}
    finished = Finished(args.out, name, options | {"data": data})
    about = ("sizes", "size", "batch", "precision", "optimizer", "threads")
    costs = {
        net: finished(f"cost of {net}", lambda net=net: apart(net, *(getattr(args, key) for key in about))) for net in networks
    }
    speeds = [each["images_per_second"] for each in costs.values()]
    steps = args.steps or finished("steps", lambda: steps_for(args.minutes, speeds, args.batch, len(args.lrs), len(test)))

    def trained(net: str, lr: float, steps: int, images: Tensor, points: int) -> list[tuple[int, float]]:
        torch.manual_seed(0)
        learning: dict[str, Any] = {"optimizer": args.optimizer, "lr": lr, "schedule": "cosine", "warmup": WARMUP}
        module = HyperNetwork(networks[net](), **learning, pictures_every=0)
        return fit(module, Crops(pictures, args.size, seed=0), images, steps, args.batch, points, args.precision)

    figures = {}
    for net in networks:
        tried = {
            lr: finished(f"{net}, lr {lr}", lambda net=net, lr=lr: trained(net, lr, steps // TRIAL, chosen_on, 1)[-1][1])
            for lr in args.lrs
        }
        best = max(tried, key=lambda lr: -math.inf if math.isnan(tried[lr]) else tried[lr])  # one too high may end in nan
        if len(args.lrs) > 1 and best in (min(args.lrs), max(args.lrs)):
            print(f"{net}: {best}, the best learning rate, is at the edge of --lrs", flush=True)
        curve = finished(net, lambda net=net, best=best: trained(net, best, steps, test, POINTS))
        same_size = finished(f"rivals of {net}", lambda net=net: rivals(pictures, test, patch, costs[net]["numbers"]))
        figures[net] = {"psnr": curve[-1][1], **costs[net], "rivals": same_size, "lr": best, "tried": tried, "curve": curve}
    with whole(args.out / f"{name}.svg") as temporary:
        temporary.write_text(plot(figures, args.batch))
    write_record(name, data, options | {"steps": steps, "begun_at": finished.begun_at}, figures, args.out)
    finished.close()


if __name__ == "__main__":
    main()
