"""The hyper-parameters of LIFT that no source gives, one changed at a time: PSNR after the same processor time.

    python benchmarks/lift_choices.py --data PACK/train.parquet

The small network of ``lift.py`` on images of 32 pixels, and one for solids made by code, 16³; around the values of the shipped
configs.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from common import RESULTS, parquet, short, write_record
from lift import BATCH, LR, SIDE, SMALL, quality, train
from PIL import Image
from torch import Tensor

from huvr.data.transforms import centre_crop
from huvr.data.voxels import SolidSet

OURS: dict[str, float] = {"lr": LR, "inner_steps": 3, "smoothness": 1e-4}
IMAGES = replace(SMALL, omega=10.0, inner_lr=100.0)
SOLIDS = replace(SMALL, dims=3, channels=1, width=64, omega=10.0)  # as lift_voxel.yaml
CHOICES: dict[str, tuple[float, ...]] = {"lr": (3e-4, 1e-3, 3e-3), "inner_steps": (1, 3, 5), "smoothness": (0.0, 1e-4, 1e-2)}
INNER_LR = {"images": (10.0, 30.0, 100.0, 300.0), "solids": (1.0, 10.0, 100.0)}


def batches(signals: Tensor, size: int) -> Callable[[], Tensor]:
    """Random batches, the same from the beginning for every training."""
    generator = torch.Generator().manual_seed(0)
    return lambda: signals[torch.randint(len(signals), (size,), generator=generator)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=parquet, required=True, help="a Parquet file of images")
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time of a training")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = pq.read_table(args.data, columns=["image"]).slice(0, 2128).column("image").to_pylist()
    images = torch.stack([centre_crop(SIDE)(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows]).float() / 255
    sets = {split: SolidSet(split, 64, 16, seed=0) for split in ("train", "validation")}
    solids = {split: torch.stack([found[n]["voxels"] for n in range(len(found))]).float() for split, found in sets.items()}

    figures: list[dict[str, Any]] = []

    def measured(data: str, changed: str, value: float) -> None:
        of_images = data == "images"
        settings: dict[str, Any] = OURS | {changed: value}
        lr = settings.pop("lr")
        train_on, test = (images[:-128], images[-128:]) if of_images else (solids["train"], solids["validation"])
        config = replace(IMAGES if of_images else SOLIDS, **settings)
        model, steps = train(config, batches(train_on, BATCH if of_images else 4), args.seconds, lr)
        figures.append({"data": data, "changed": changed, "value": value, "psnr": round(quality(model, test), 2), "steps": steps})
        print(figures[-1], flush=True)

    for changed, values in CHOICES.items():
        for value in values:
            measured("images", changed, value)
    for data, values in INNER_LR.items():
        for value in values:
            measured(data, "inner_lr", value)
    config = {"seconds": args.seconds, "ours": OURS | {"inner_lr": {"images": IMAGES.inner_lr, "solids": 10.0}}}
    write_record("lift_choices", f"{short(args.data)}, {SIDE} px; solids made by code, 16³", config, figures, args.out)


if __name__ == "__main__":
    main()
