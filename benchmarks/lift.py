"""LIFT, ReLIFT, Functa and SpatialFuncta after the same processor time; the price of the inner loop; volumes; classification.

    python benchmarks/lift.py --data PACK/train.parquet

Small networks for 32-pixel images, with as many numbers an image (1792, of 3072 in the image) and SIRENs of one shape. Of each
kind, the choices below are tried for a quarter of the time, and the best on images kept apart for it is trained anew; 128 images
that neither saw are measured. One run each, on one thread. The solids are made by code. The record names the winners, and
the picture beside it shows the way from one held-out image to another through LIFT's latents.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import RESULTS, parquet, short, write_record
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.utils import make_grid

from huvr.data.transforms import centre_crop
from huvr.data.voxels import SolidSet
from huvr.hypernets.lift import LIFT, LIFTConfig
from huvr.hypernets.lift_classifier import LatentFile, classify
from huvr.hypernets.lift_meta import descend, find_latents, interpolate, objective, points_of, reconstruct
from huvr.hypernets.lift_module import as_pictures, iou
from huvr.metrics import psnr
from huvr.parquet import vectors
from huvr.viz import save_png, to_uint8

SIDE, BATCH, LR = 32, 8, 1e-3
SMALL = LIFTConfig(cells=4, latents=((1, 256), (2, 128), (4, 64)))
KINDS: dict[str, tuple[LIFTConfig, dict[str, tuple[float, ...]]]] = {
    "LIFT": (SMALL, {"omega": (10.0, 20.0), "inner_lr": (10.0, 30.0, 100.0)}),
    "ReLIFT": (replace(SMALL, residual=True), {"gamma": (1.5, 3.0), "inner_lr": (10.0, 30.0, 100.0)}),
    "Functa": (replace(SMALL, cells=1, latents=((1, 1792),)), {"omega": (10.0, 30.0), "inner_lr": (1.0, 3.0, 10.0)}),
    "SpatialFuncta": (replace(SMALL, cells=1, latents=((4, 112),)), {"omega": (10.0, 30.0), "inner_lr": (3.0, 10.0, 30.0)}),
}
SOLIDS = replace(SMALL, dims=3, channels=1, width=32)


def train(config: LIFTConfig, batch: Callable[[], Tensor], seconds: float, lr: float = LR) -> tuple[LIFT, int]:
    """A network after so much processor time, and its steps."""
    torch.manual_seed(0)
    model, steps, end = LIFT(config), 0, time.process_time() + seconds
    optimizer = torch.optim.Adam(model.parameters(), lr)
    while time.process_time() < end:
        signals = batch()
        points = points_of(model, signals)
        loss = objective(model, descend(model, signals, points, second_order=True), signals, points)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return model, steps


@torch.no_grad()
def quality(model: LIFT, signals: Tensor) -> float:
    return psnr(as_pictures(reconstruct(model, signals)), as_pictures(signals)).mean().item()


def inner_loop_seconds(images: Tensor, repeats: int = 5) -> dict[str, float]:
    """Processor time of a meta-gradient for a batch: all at once, in a loop over images, and all at once to first order."""
    model = LIFT(SMALL)

    def gradient(batch: Tensor, second_order: bool) -> None:
        points = points_of(model, batch)
        objective(model, descend(model, batch, points, second_order), batch, points)[0].sum().backward()

    ways: dict[str, Callable[[], Any]] = {
        "batched": lambda: gradient(images, True),
        "loop": lambda: [gradient(image[None], True) for image in images],
        "first_order": lambda: gradient(images, False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, way) in product(range(repeats + 1), ways.items()):
        start = time.process_time()
        way()
        seconds[name].append(time.process_time() - start)
    return {name: round(statistics.median(each[1:]), 4) for name, each in seconds.items()}


def counted(config: LIFTConfig, side: int) -> dict[str, int]:
    """Parameters, and the products of painting one image: by the formula, and as torch counts them."""
    model, size = LIFT(config), (side,) * config.dims
    signal = torch.rand(1, config.channels, *size)
    latents = find_latents(model, signal)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.paint(model.fuse(latents), model.grid(size))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": model.multiply_adds(side**config.dims),
        "multiply_adds_by_torch": counter.get_total_flops() // 2,
    }


def top1(encode: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, held_out: int) -> float:
    """Accuracy of a small classifier of what ``encode`` makes of images, through files as the second stage has them."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("train.parquet", "test.parquet")]
        for file, part in zip(files, (slice(0, -held_out), slice(-held_out, None)), strict=True):
            features = torch.cat([encode(batch) for batch in images[part].split(64)])
            pq.write_table(pa.table({"latents": vectors(features), "label": pa.array(labels[part].numpy())}), file)
        torch.manual_seed(0)
        return round(classify(LatentFile(files[0]), LatentFile(files[1])), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=parquet, required=True, help="a Parquet file of labelled images")
    parser.add_argument("--seconds", type=float, default=40.0, help="processor time of a training")
    parser.add_argument("--images", type=int, default=4000, help="to train on")
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = pq.read_table(args.data, columns=["image", "label"]).slice(0, args.images + 256).to_pylist()
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    images = torch.stack([centre_crop(SIDE)(picture) for picture in pictures]).float() / 255
    labels = torch.tensor([row["label"] for row in rows])
    training, chosen_on, test = images[:-256], images[-256:-128], images[-128:]
    generator = torch.Generator().manual_seed(0)

    def batch() -> Tensor:
        return training[torch.randint(len(training), (BATCH,), generator=generator)]

    kinds, models = [], {}
    for name, (config, grid) in KINDS.items():
        tried = [replace(config, **dict(zip(grid, values, strict=True))) for values in product(*grid.values())]
        scores = [quality(train(each, batch, args.seconds / 4)[0], chosen_on) for each in tried]
        best = tried[scores.index(max(scores))]
        models[name], steps = train(best, batch, args.seconds)
        choices = [
            {key: getattr(each, key) for key in grid} | {"psnr": round(s, 2)} for each, s in zip(tried, scores, strict=True)
        ]
        kinds.append({
            "kind": name, "psnr": round(quality(models[name], test), 2), "steps": steps, **counted(best, SIDE),
            **{key: getattr(best, key) for key in grid}, "tried": choices,
        })  # fmt: skip
        print(kinds[-1], flush=True)

    solids = SolidSet("train", 4096, SIDE, seed=0)
    held_out = torch.stack([SolidSet("validation", 16, SIDE, seed=0)[number]["voxels"] for number in range(16)]).float()
    numbers = iter(range(len(solids)))
    voxel_batch = lambda: torch.stack([solids[next(numbers)]["voxels"] for _ in range(2)]).float()  # noqa: E731
    best = replace(SOLIDS, omega=models["LIFT"].config.omega, inner_lr=models["LIFT"].config.inner_lr)
    volumes, steps = train(best, voxel_batch, 1.5 * args.seconds)
    with torch.no_grad():
        painted = torch.cat([reconstruct(volumes, some) for some in held_out.split(2)])
    voxels = {
        "data": f"solids made by code, {SIDE}³", "steps": steps, **counted(best, SIDE),
        "mse": round((painted - held_out).square().mean().item(), 5),
        "psnr": round(psnr(as_pictures(painted), as_pictures(held_out)).mean().item(), 2),
        "iou": round(iou(painted, held_out).mean().item(), 3), "mse_of_nothing": round(held_out.mean().item(), 5),
    }  # fmt: skip
    print(voxels, flush=True)

    lift = models["LIFT"]
    seconds = inner_loop_seconds(images[:BATCH])
    figures = {
        "images": kinds,
        "voxels": voxels,
        "inner_loop": seconds | {"loop_over_batched": round(seconds["loop"] / seconds["batched"], 1)},
        "paper_size": counted(LIFTConfig(), 64),
        "top1": {
            "latents": top1(lambda some: torch.cat([z.flatten(1) for z in find_latents(lift, some)], 1), images, labels, 256),
            "pixels": top1(lambda some: some.flatten(1), images, labels, 256),
        },
    }
    way = interpolate(lift, test[:6], test[6:12], 8).flatten(0, 1)
    save_png(to_uint8(make_grid(way, nrow=8, pad_value=1.0)), RESULTS / "lift_interpolation.png")
    data = f"{short(args.data)}, {SIDE} px: {len(training)} images to train, 128 to choose, the last 128 held out"
    write_record("lift", data, {"seconds": args.seconds, "batch": BATCH, "lr": LR}, figures)


if __name__ == "__main__":
    main()
