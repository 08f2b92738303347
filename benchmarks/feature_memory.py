"""Memory of the tasks that read cached features, for data sets of growing size: features stay on the disk.

    python benchmarks/feature_memory.py

Random features in fp16 are written into a cache; k-NN, retrieval and logistic regression then run on them, each in a process
of its own. Anonymous memory is what a process holds itself; the file of features, mapped, is the system's to take back.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import resident_mb, write_record
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from huvr.commands.calm import calm
from huvr.model import HUVR, HUVRConfig
from huvr.tasks import cache
from huvr.tasks.base import EncoderConfig, FrozenEncoder, FrozenEncoderTask
from huvr.tasks.features import FeatureSplit
from huvr.tasks.knn import KNN
from huvr.tasks.logistic import Logistic
from huvr.tasks.retrieval import Retrieval

TASKS: dict[str, Callable[[EncoderConfig], FrozenEncoderTask]] = {
    "knn": KNN, "retrieval": Retrieval, "logistic": lambda encoder: Logistic(encoder, inner_steps=2),
}  # fmt: skip
QUERIES, CLASSES, PIECE = 1000, 100, 8192


def features(rows: int, dim: int) -> Iterator[cache.Entry]:
    generator = np.random.default_rng(0)
    for start in range(0, rows, PIECE):
        count = min(PIECE, rows - start)
        yield cache.Entry(
            generator.standard_normal((count, dim), dtype=np.float32).astype(np.float16), generator.integers(CLASSES, size=count)
        )


class Stored(LightningDataModule):
    """Splits of the cache, as a task sees them."""

    def __init__(self, folder: Path, sizes: tuple[int, int], dim: int, encoder: FrozenEncoder) -> None:
        super().__init__()
        entries = [cache.find(folder, key(rows, dim)) for rows in sizes]
        classes = [str(number) for number in range(CLASSES)]
        self.train, self.test = (FeatureSplit(entry, classes, encoder) for entry in entries if entry)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.train], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return DataLoader([self.test], batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader


def key(rows: int, dim: int) -> dict[str, Any]:
    return {"rows": rows, "dim": dim}


def measured(task: str, folder: Path, rows: int, dim: int, threads: int) -> dict[str, float]:
    """Seconds, and peak memory in MB beyond what the process had before, sampled every 5 ms."""
    calm()
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    encoder = EncoderConfig(str(folder / "encoder"))
    module, data = TASKS[task](encoder), Stored(folder, (rows, QUERIES), dim, FrozenEncoder(encoder))
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(default_root_dir=folder, max_epochs=1, accelerator="cpu", **off)  # type: ignore[arg-type]
    before = {field: resident_mb(field) for field in ("RssAnon", "VmRSS")}
    most, over = dict(before), threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            for field, value in most.items():
                most[field] = max(value, resident_mb(field))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if task == "logistic":
        trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    return {
        "seconds": round(seconds, 2),
        "anonymous_mb": round(most["RssAnon"] - before["RssAnon"]),
        "resident_mb": round(most["VmRSS"] - before["VmRSS"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the training split")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        HUVR(HUVRConfig(image_size=16, width=16, depth=1, heads=1, decoder_width=16, decoder_heads=1)).save(folder / "encoder")
        for rows in (QUERIES, *args.rows):
            cache.store(folder, key(rows, args.dim), rows, features(rows, args.dim))
        for task in TASKS:
            for rows in args.rows:
                with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
                    found = pool.submit(measured, task, folder, rows, args.dim, args.threads).result()
                figures.append({"task": task, "images": rows, "file_mb": round(2 * rows * args.dim / 2**20), **found})
                print(figures[-1], flush=True)
    write_record("feature_memory", f"random features in fp16, {QUERIES} queries", vars(args) | {"classes": CLASSES}, figures)


if __name__ == "__main__":
    main()
