"""Held-out photographs: a network beside per-patch PCA of the same size and a flat mean colour per patch.

    python benchmarks/reconstruction.py --encoder runs/demo

Whole photographs at their own size. PCA keeps as many numbers per patch as a TinTok has and is fitted to all patches of the
photographs that the network was trained on; the one global TinTok comes on top of that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from common import RESULTS, short, write_record
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from huvr import HUVR, load
from huvr.data import Images
from huvr.data.samples import Rows
from huvr.errors import HuvrError
from huvr.metrics import psnr, ssim
from huvr.tasks.rivals import PatchPCA


def pictures(rows: Rows, patch: int) -> Iterator[tuple[str, Tensor]]:
    """Name and ``(1, 3, H, W)`` in [0, 1] of whole photographs, their sides cut to multiples of the patch."""
    for index in range(len(rows)):
        found = rows.readable(index)
        image = pil_to_tensor(found.image)[None].float() / 255
        height, width = (side // patch * patch for side in image.shape[-2:])
        yield Path(found.row["image"]["path"] or str(index)).name, image[..., :height, :width]


def flat(image: Tensor, patch: int) -> Tensor:
    """Each patch in its mean colour."""
    return F.interpolate(F.avg_pool2d(image, patch), scale_factor=patch, mode="nearest-exact")


@torch.inference_mode()
def measure(model: HUVR, data: Images) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Mean PSNR and SSIM of each method, and the PSNR of each photograph."""
    train, held_out = data.train_rows, data.val_rows
    if not (isinstance(train, Rows) and isinstance(held_out, Rows)):
        raise HuvrError("a benchmark of held-out photographs needs a data set with a held-out split that is no stream")
    patch = model.patch
    pca = PatchPCA((image for _, image in pictures(train, patch)), patch, model.config.tintok_dim)
    methods = {"huvr": model.reconstruct, "patch_pca": pca.reconstruct, "flat_patch": lambda image: flat(image, patch)}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    photos = {}
    for photo, image in tqdm(pictures(held_out, patch), total=len(held_out), unit="image", disable=None):
        for name, method in methods.items():
            drawn = method(image)
            scores[name].append((psnr(drawn, image).item(), ssim(drawn, image).item()))
        photos[photo] = {name: round(values[-1][0], 2) for name, values in scores.items()}
    means = {name: (sum(column) / len(values) for column in zip(*values, strict=True)) for name, values in scores.items()}
    return {name: {"psnr": round(p, 2), "ssim": round(s, 4)} for name, (p, s) in means.items()}, photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="runs/demo")
    parser.add_argument("--data", default="photos", help="what the network was trained on, as in data.root")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the record")
    args = parser.parse_args()

    model, data = load(args.encoder), Images(args.data)
    data.setup()
    means, photos = measure(model, data)

    print(f"\n{'PSNR in dB':24}" + "".join(f"{name:>12}" for name in means))
    shown = photos if len(photos) <= 10 else {}
    for name, row in [*shown.items(), ("mean", {name: mean["psnr"] for name, mean in means.items()})]:
        print(f"{name:24}" + "".join(f"{value:12.2f}" for value in row.values()))
    ahead = {name: means["huvr"]["psnr"] - means[name]["psnr"] for name in ("patch_pca", "flat_patch")}
    for name, gain in ahead.items():
        rival = "a flat mean colour" if name == "flat_patch" else f"PCA with {model.config.tintok_dim} numbers"
        print(f"HUVR is {abs(gain):.2f} dB {'better' if gain > 0 else 'WORSE'} than {rival} per patch")
    c = model.config
    config = {
        "encoder": short(args.encoder),
        "patch": c.patch,
        "tintok_dim": c.tintok_dim,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    figures = {"mean": means, "photographs": shown, "held_out": len(photos)}
    write_record("reconstruction", short(args.data), config, figures, args.out)


if __name__ == "__main__":
    main()
