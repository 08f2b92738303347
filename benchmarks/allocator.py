"""Seconds that a CPU takes for huvr-tiny with malloc as glibc has it, and as the command ``huvr`` sets it, by turns.

    python benchmarks/allocator.py

Each measurement is a process of its own: a training step (forward, backward, AdamW, bf16), or images to TinToks and back (fp32),
of random images of 256 x 256. Page faults are of the small kind, a page of memory that the system clears.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from common import resident_mb, write_record

import huvr
from huvr.commands.memory import keep_memory
from huvr.losses import log_pixel_loss

WARM = 2


def training(net: huvr.HUVR, images: torch.Tensor) -> Callable[[], None]:
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            log_pixel_loss(net.reconstruct(images), images).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def drawing(net: huvr.HUVR, images: torch.Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def step() -> None:
        net.reconstruct(images)

    return step


WORK = {"training step": training, "reconstruction": drawing}


def measured(work: str, batch: int, keeps: bool, steps: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    if keeps:
        keep_memory()
    step = WORK[work](huvr.load().eval(), torch.rand(batch, 3, 256, 256))
    for _ in range(WARM):
        step()
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    seconds, faults = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"seconds": seconds / steps, "page_faults": faults / steps, "peak_mb": resident_mb("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)  # as the record says

    figures: list[dict[str, Any]] = []
    for work in WORK:
        for batch in args.batches:
            rounds = []
            for number in range(args.rounds):
                pair = {}
                for keeps in (False, True) if number % 2 else (True, False):
                    with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
                        pair[keeps] = pool.submit(measured, work, batch, keeps, args.steps, args.threads).result()
                rounds.append(pair)
            medians = {
                keeps: {name: statistics.median(pair[keeps][name] for pair in rounds) for name in pair[keeps]} for keeps in pair
            }
            figures.append({
                "work": work,
                "batch": batch,
                "ratios": [round(pair[False]["seconds"] / pair[True]["seconds"], 3) for pair in rounds],
                "as_glibc": {name: round(value, 3) for name, value in medians[False].items()},
                "kept": {name: round(value, 3) for name, value in medians[True].items()},
            })  # fmt: skip
            print(figures[-1], flush=True)
    write_record("allocator", "random images of 256 x 256", vars(args), figures)


if __name__ == "__main__":
    main()
