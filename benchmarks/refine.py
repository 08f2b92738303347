"""What test-time optimisation brings: held-out photographs drawn from refined TinToks, beside per-patch PCA of the same size.

    python benchmarks/refine.py --encoder huvr-tiny --data runs/tiny-data

Whole photographs at their own size, one at a time, as ``reconstruction.py`` measures them; also from TinToks stored in a byte a
number. The search looks at the centres of pixels alone. Whether what lies between them suffers is told by photographs that are
halved first and then drawn twice as large. Seconds are those of encoding and refining one whole photograph.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
from common import RESULTS, short, write_record
from reconstruction import pictures
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from huvr import HUVR, Tokens, load
from huvr.data import Images
from huvr.data.samples import Rows
from huvr.metrics import psnr, ssim
from huvr.tasks.rivals import PatchPCA
from huvr.tasks.storage import as_stored


@torch.no_grad()
def measured(model: HUVR, image: Tensor, steps: int) -> dict[str, float]:
    """Of one photograph ``(1, 3, H, W)`` in [0, 1]."""

    def found(image: Tensor) -> Tokens:
        return model.refine(model.compress(model.encode(image)), image, steps)

    def drawn(tintoks: Tokens, size: tuple[int, int], scale: int = 1) -> Tensor:
        return model.render(model.expand(tintoks), size, scale)

    begin = time.perf_counter()
    tintoks = found(image)
    seconds = time.perf_counter() - begin
    height, width = image.shape[-2:]
    half = height // 2, width // 2
    as_it_is = drawn(tintoks, (height, width))
    return {
        "psnr": psnr(as_it_is, image).item(),
        "ssim": ssim(as_it_is, image).item(),
        "psnr_int8": psnr(drawn(tintoks.apply(lambda numbers: as_stored(numbers, "int8")), (height, width)), image).item(),
        "psnr_halved": psnr(drawn(found(resize(image, list(half))), half, 2), image).item(),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="huvr-tiny")
    parser.add_argument("--data", required=True, help="what the network was trained on, with a held-out split, as in data.root")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 10, 30, 100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, data = load(args.encoder), Images(args.data)
    data.setup()
    train, held_out = data.train_rows, data.val_rows
    if not (isinstance(train, Rows) and isinstance(held_out, Rows)):
        parser.error("--data: photographs with a held-out split are expected, no stream")
    pca = PatchPCA((image for _, image in pictures(train, model.patch)), model.patch, model.config.tintok_dim)

    scores: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _, image in tqdm(pictures(held_out, model.patch), total=len(held_out), unit="image", disable=None):
        rival = pca.reconstruct(image)
        scores["per-patch PCA"].append({"psnr": psnr(rival, image).item(), "ssim": ssim(rival, image).item()})
        for steps in args.steps:
            scores[f"{steps} steps"].append(measured(model, image, steps))
    digits = {"ssim": 4, "seconds": 3}
    figures = {
        name: {key: round(sum(row[key] for row in rows) / len(rows), digits.get(key, 2)) for key in rows[0]}
        for name, rows in scores.items()
    }
    for name, row in figures.items():
        print(name, row)
    config = {"encoder": short(args.encoder), "steps": args.steps, "threads": args.threads, "held_out": len(held_out)}
    write_record("refine", short(args.data), config, figures, args.out)


if __name__ == "__main__":
    main()
