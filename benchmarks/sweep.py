"""Training 13 linear heads against one, the encoder in the loop: time of a step, and of its parts.

python benchmarks/sweep.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from common import write_record
from safetensors.torch import save_file

from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.linear import RATES
from huvr.tasks.linear_heads import Feature, Heads

CLASSES, SIZE = 1000, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "random.safetensors")
        save_file(timm.create_model(args.model).state_dict(), weights)
        encoder = FrozenEncoder(EncoderConfig(f"timm:{args.model}", weights=weights), device)
    feature = Feature(encoder, blocks=1, avgpool=True)
    images = torch.rand(args.batch, 3, SIZE, SIZE, device=device)
    labels = torch.randint(CLASSES, (args.batch,), device=device)
    heads = {count: Heads(feature.dim, CLASSES, RATES[-count:]).to(device) for count in (1, len(RATES))}
    optimizers = {count: torch.optim.SGD(each.parameters(), 0.1, momentum=0.9) for count, each in heads.items()}

    seconds: dict[int, list[float]] = {count: [] for count in heads}
    for step in range(args.steps + 1):
        for count, each in heads.items():  # in turns, so that a busy machine hits both
            start = time.perf_counter()
            each.total(each.losses(feature(images), labels)).backward()
            optimizers[count].step()
            optimizers[count].zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if step:  # the first one makes the optimiser's state
                seconds[count].append(time.perf_counter() - start)
    medians = {count: statistics.median(each) for count, each in seconds.items()}
    figures = {f"seconds_{count}_heads": round(median, 4) for count, median in medians.items()}
    figures["times_slower"] = round(medians[len(RATES)] / medians[1], 3)
    print(figures)
    write_record("sweep", f"random images, {SIZE} px, {CLASSES} classes", vars(args), figures)


if __name__ == "__main__":
    main()
