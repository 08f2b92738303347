"""Large photographs drawn whole and in tiles, as ``huvr reconstruct --tile`` does: PSNR and seconds.

python benchmarks/tiles.py                     # huvr-tiny, on the photographs that scikit-image ships

huvr-tiny learned none of them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_record
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from huvr import HUVR, load
from huvr.commands.reconstruct import draw, joined, pieces
from huvr.data import photos, read_image
from huvr.metrics import psnr

NAMES = ("retina.jpg", "hubble_deep_field.jpg", "rocket.jpg", "astronaut.png", "coffee.png", "chelsea.png")


@torch.inference_mode()
def measured(model: HUVR, image: Tensor, tile: int | None) -> dict[str, float]:
    """Of one photograph ``(1, 3, H, W)`` in [0, 1]."""
    begin = time.perf_counter()
    rows, columns = (pieces(side, tile or side + model.patch, model.patch) for side in image.shape[-2:])
    drawn = joined([[draw(model, image[..., row, column], refine=0, scale=1)[0] for column in columns] for row in rows])
    return {"psnr": round(psnr(drawn, image).item(), 2), "seconds": round(time.perf_counter() - begin, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="huvr-tiny")
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 384, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, figures = load(args.encoder), []
    paths = {path.name: path for side in photos.paths().values() for path in side}
    for name in NAMES:
        image = pil_to_tensor(read_image(paths[name]))[None].float() / 255
        measured(model, image[..., :256, :256], None)  # to warm up
        row: dict[str, Any] = {"photograph": name, "height": image.shape[2], "width": image.shape[3]}
        row |= {"whole": measured(model, image, None)} | {str(tile): measured(model, image, tile) for tile in args.tiles}
        figures.append(row)
        print(row, flush=True)
    settings = {"encoder": args.encoder, "tiles": args.tiles, "threads": args.threads}
    write_record("tiles", "photographs that scikit-image ships", settings, figures, args.out)


if __name__ == "__main__":
    main()
