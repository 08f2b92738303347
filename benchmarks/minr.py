"""Masked training of TransINR, GINR, HUVR and a masked autoencoder alike, and how well each paints what is hidden (MINR).

    python benchmarks/minr.py --data PACK/train.parquet --other PACK/train.parquet --steps 600

The small networks of ``hypernets.py`` and an autoencoder of about their size, images of 64 pixels in 8×8 cells, each cell
hidden with probability 0.75, the same crops in the same order, Muon at one learning rate. Measured as ``huvr probe --task minr``
does: held-out crops, and crops of other data, each with one mask of each kind and ratio. Beside them stand two painters that
learn nothing: the mean colour of what is seen, and biharmonic inpainting (scikit-image).

Whatever is measured lies in a file in ``--out`` at once: the same command goes on where it was broken off.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, random_crops, write_record
from hypernets import small
from pictures import load_pictures
from skimage.restoration import inpaint_biharmonic
from torch import Tensor
from trainings import Crops, Finished, fit

from huvr.data.samples import seed_of
from huvr.hypernets.interface import HyperINR
from huvr.hypernets.mae import MAE
from huvr.hypernets.masking import Masking, hide, masked_psnr
from huvr.hypernets.module import HyperNetwork
from huvr.metrics import psnr

SIZE, CELL, RATIO = 64, 8, 0.75
MEASURED = [Masking(ratio, CELL) for ratio in (0.5, 0.6, 0.7, RATIO, 0.8, 0.9)]
MEASURED += [Masking(RATIO, CELL, kind) for kind in ("block", "grid")]
NETWORKS: dict[str, Callable[[], HyperINR]] = {name: net for name, net in small(SIZE).items() if name in ("TransINR", "GINR")}
NETWORKS["HUVR (ours)"] = small(SIZE)["HUVR (ours)"]
NETWORKS["MAE"] = lambda: MAE(CELL, 192, 6, 3, 128, 4, 4)

Painter = Callable[[Tensor, Tensor], Tensor]  # images with their hidden pixels black, and the mask


def mean_colour(seen: Tensor, mask: Tensor) -> Tensor:
    """Hidden pixels in the mean colour of those seen."""
    mean = seen.sum((2, 3), keepdim=True) / (~mask).sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(mask, mean, seen)


def biharmonic(seen: Tensor, mask: Tensor) -> Tensor:
    """Hidden pixels continued smoothly from those seen."""
    drawn = [
        inpaint_biharmonic(image.permute(1, 2, 0).numpy(), hidden[0].numpy(), channel_axis=-1)
        for image, hidden in zip(seen, mask, strict=True)
    ]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float()


def hidden_as_painted(net: HyperINR) -> Painter:
    return lambda seen, mask: net.reconstruct(seen, mask=mask)


@torch.inference_mode()
def measured(painter: Painter, images: Tensor) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB of hidden pixels and of whole images, by kind and ratio of the masks."""
    found = {}
    for masking in MEASURED:
        seeds = [seed_of("minr", 0, masking.kind, str(masking.ratio), number) for number in range(len(images))]
        mask = masking.masks(images, seeds)
        painted = painter(hide(images, mask), mask)
        values = {"hidden": masked_psnr(painted, images, mask), "whole": psnr(painted, images)}
        found[f"{masking.kind} {masking.ratio:g}"] = {name: round(each.nanmean().item(), 2) for name, each in values.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a Parquet file of images, whose last tenth is held out")
    parser.add_argument("--other", required=True, help="a Parquet file of images of another kind, to be measured on only")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-3, help="of Muon")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shorter = round(SIZE * 10 / 9)
    pictures, held_out, data = load_pictures(args.data, shorter)
    _, others, other = load_pictures(args.other, shorter)
    sources = {"own": held_out, "other": others}
    domains = {name: random_crops(each, 64, SIZE, np.random.default_rng(0)) for name, each in sources.items()}
    options: dict[str, Any] = {key: value for key, value in vars(args).items() if key not in ("out", "data", "other")}
    finished = Finished(args.out, "minr", options | {"data": data, "other": other})

    def trained(name: str) -> dict[str, Any]:
        torch.manual_seed(0)
        learning: dict[str, Any] = {"optimizer": "muon", "lr": args.lr, "schedule": "cosine", "warmup": 0.1}
        module = HyperNetwork(NETWORKS[name](), Masking(RATIO, CELL), **learning, pictures_every=0)
        fit(module, Crops(pictures, SIZE, seed=0), domains["own"], args.steps, args.batch)
        painter = hidden_as_painted(module.net)
        return {"parameters": sum(p.numel() for p in module.net.parameters())} | each_domain(painter)

    def each_domain(painter: Painter) -> dict[str, Any]:
        return {domain: measured(painter, images) for domain, images in domains.items()}

    figures = {name: finished(name, lambda name=name: trained(name)) for name in NETWORKS}
    figures["mean colour"] = finished("mean colour", lambda: each_domain(mean_colour))
    figures["biharmonic"] = finished("biharmonic", lambda: each_domain(biharmonic))
    config = options | {"size": SIZE, "cell": CELL, "ratio": RATIO, "other": other, "begun_at": finished.begun_at}
    write_record("minr", data, config, figures, args.out)
    finished.close()


if __name__ == "__main__":
    main()
