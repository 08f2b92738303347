"""Training crops per second from disk to device, by number of workers: a folder of files, and Parquet as table and as stream.

python benchmarks/input.py                                    # a folder and a Parquet file of random pictures, made for this
python benchmarks/input.py --data train.parquet --workers 0 1 2 4 8 16

The images of ``--data`` are written anew to both, encoded as they are. They still lie in memory when they are read, so
what is measured is decoding, cropping and the way to the device, not the disk. No source is read to its end.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import short, write_record
from PIL import Image

from huvr.data import Images
from huvr.errors import HuvrError

SATURATED = 0.95  # of the greatest rate measured


def random_pictures(count: int, side: int = 256) -> list[bytes]:
    """JPEG files of smooth noise, about as large as photographs of that side."""
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def encoded(source: str | None, count: int) -> list[bytes]:
    """The first ``count`` images of a Parquet file, undecoded."""
    if source is None:
        return random_pictures(count)
    table = datasets.load_dataset("parquet", data_files=source, split="train", streaming=True)
    if "image" not in (table.features or {}):
        raise HuvrError(f"{source}: no column called image")
    rows = table.select_columns("image").cast_column("image", datasets.Image(decode=False))
    return [row["image"]["bytes"] for row in rows.take(count)]


def write_sources(folder: Path, files: list[bytes], shards: int) -> dict[str, tuple[Path, bool]]:
    """The images as a folder and as Parquet shards; by name, the root and whether it is streamed."""
    (folder / "files").mkdir()
    (folder / "packs").mkdir()
    for number, content in enumerate(files):
        (folder / "files" / f"{number:06}.{Image.open(io.BytesIO(content)).format.lower()}").write_bytes(content)  # type: ignore[union-attr]
    for shard in range(shards):
        rows = {"image": [{"bytes": content, "path": None} for content in files[shard::shards]]}
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / "packs" / f"train-{shard}.parquet")
    packs = folder / "packs"
    return {"folder": (folder / "files", False), "parquet": (packs, False), "parquet, streamed": (packs, True)}


def images_per_second(root: Path, streaming: bool, workers: int, args: argparse.Namespace, device: torch.device) -> float:
    """Of ``--batches`` batches on the device, after as many to warm up as workers prefetch."""
    data = Images(
        str(root), held_out=0, streaming=streaming, size=args.size, batch_size=args.batch, epoch_size=10**6, workers=workers
    )
    data.setup()
    ahead = 1 + 2 * workers
    batches = islice(data.train_dataloader(), ahead + args.batches)
    for _ in range(ahead):
        next(batches)["image"].to(device)
    start = time.perf_counter()
    for batch in batches:
        batch["image"].to(device, non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return args.batches * args.batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", help="a Parquet file of images; random pictures without")
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    datasets.disable_progress_bars()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        datasets.config.HF_DATASETS_CACHE = Path(name, "cache")
        sources = write_sources(Path(name), encoded(args.data, args.images), shards=max(1, *args.workers))
        for source, (root, streaming) in sources.items():
            rates: dict[int, float] = {}
            for workers in args.workers:
                rates[workers] = round(images_per_second(root, streaming, workers, args, device), 1)
                print(f"{source}, {workers} workers: {rates[workers]} images/s", flush=True)
            enough = min(workers for workers, rate in rates.items() if rate >= SATURATED * max(rates.values()))
            figures[source] = {"images_per_second": rates, "workers_that_saturate_it": enough}
    data = short(args.data) if args.data else "random pictures, 256 px, JPEG"
    write_record("input" + ("_cuda" if device.type == "cuda" else ""), data, vars(args) | {"data": data}, figures)


if __name__ == "__main__":
    main()
