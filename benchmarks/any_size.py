"""Any size, any scale: what the positions and mixed training sizes are worth, and what is drawn between the pixels.

    python benchmarks/any_size.py --data PACK/train.parquet           # or without --data: scikit-image's photographs

Small networks (ViT 128×4, patch 8, TinToks of 16) trained alike, but for the row of the table. Two tables:

- sizes: photographs of 768×512 pixels, whole against cut into tiles of the training size (64 pixels);
- scales: photographs made 2 or 3 times smaller, drawn 2 or 3 times larger again, by the INR and by bicubic enlargement of
  its 1× rendering, against the true photograph.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from common import short, write_record
from einops import rearrange
from lightning.pytorch import Trainer
from pictures import photographs
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from huvr.data import Images
from huvr.metrics import psnr
from huvr.model import HUVR, HUVRConfig
from huvr.pretrain import Pretraining

SIZE = 64
NET = HUVRConfig(
    image_size=SIZE, patch=8, width=128, depth=4, heads=4, tintok_dim=16, decoder_width=192, decoder_depth=2,
    decoder_hidden=384, inr_widths=(128, 128, 128),
)  # fmt: skip
FIXED = [(SIZE, SIZE)]
MIXED = [(64, 64), (48, 88), (88, 48), (32, 128), (128, 32), (96, 128), (128, 96), (160, 160)]
ROWS: dict[str, dict[str, Any]] = {
    "one size, positions scaled": {"sizes": FIXED, "positions": "scaled"},
    "one size, positions by index": {"sizes": FIXED, "positions": "index"},
    "mixed sizes, positions scaled": {"sizes": MIXED, "positions": "scaled"},
    "mixed sizes, positions by index": {"sizes": MIXED, "positions": "index"},
    "mixed sizes, phase jitter": {"sizes": MIXED, "phase_jitter": 0.5},
    "mixed sizes, phase jitter, frequencies to 16": {"sizes": MIXED, "phase_jitter": 0.5, "inr_max_frequency": 16.0},
}


def train(data: str, steps: int, lr: float, sizes: list[tuple[int, int]], phase_jitter: float = 0.0, **changes: Any) -> HUVR:
    """A network trained by huvr's own pretraining on batches of 16 crops."""
    torch.manual_seed(0)
    module = Pretraining(replace(NET, **changes), optimizer="muon", lr=lr * 256 / 16, phase_jitter=phase_jitter, pictures_every=0)
    images = Images(data, size=SIZE, sizes=sizes, scale=(0.05, 0.6), batch_size=16, epoch_size=16 * steps, workers=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, limit_val_batches=0, gradient_clip_val=1.0, **quiet)
    trainer.fit(module, images)
    return module.net.cpu().eval()


def sizes_row(model: HUVR, pictures: list[Tensor]) -> dict[str, float]:
    """Mean PSNR of 512×768 pictures as a whole and in tiles."""
    whole, tiled = [], []
    for picture in pictures:
        image = TF.center_crop(cover(picture, 512, 768), [512, 768])[None].float() / 255
        tiles = rearrange(image, "1 c (h s) (w t) -> (h w) c s t", s=SIZE, t=SIZE)
        drawn = rearrange(model.reconstruct(tiles), "(h w) c s t -> 1 c (h s) (w t)", h=512 // SIZE)
        whole.append(psnr(model.reconstruct(image), image).item())
        tiled.append(psnr(drawn, image).item())
    mean_whole, mean_tiled = (sum(values) / len(values) for values in (whole, tiled))
    worst = max(tile - one for tile, one in zip(tiled, whole, strict=True))
    return {"whole": mean_whole, "tiled": mean_tiled, "most_lost_by_whole": worst}


def cover(picture: Tensor, height: int, width: int) -> Tensor:
    """Resized to just cover height × width, turned upright or not to do so with the least enlargement."""
    if (picture.shape[1] > picture.shape[2]) != (height > width):
        picture = picture.transpose(1, 2)
    ratio = max(height / picture.shape[1], width / picture.shape[2])
    return TF.resize(picture, [round(side * ratio) for side in picture.shape[1:]], antialias=True)


def scales_row(model: HUVR, pictures: list[Tensor], scale: int) -> dict[str, float]:
    """Mean PSNR, against the photograph, of drawing its smaller copy larger."""
    scores: dict[str, list[float]] = {"inr": [], "bicubic_of_1x": [], "bicubic_of_input": []}
    for picture in pictures:
        truth = picture[:, : picture.shape[1] // scale * scale, : picture.shape[2] // scale * scale][None].float() / 255
        small = F.interpolate(truth, scale_factor=1 / scale, mode="bicubic", antialias=True)
        tokens = model.expand(model.compress(model.encode(small)))
        drawn = {"inr": model.render(tokens, size=(small.shape[2], small.shape[3]), scale=scale)}
        for name, one in (("bicubic_of_1x", model.render(tokens, (small.shape[2], small.shape[3]))), ("bicubic_of_input", small)):
            drawn[name] = F.interpolate(one, scale_factor=scale, mode="bicubic")
        for name, image in drawn.items():
            scores[name].append(psnr(image, truth).item())
    return {name: sum(values) / len(values) for name, values in scores.items()}


def rounded(row: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in row.items()}


@torch.inference_mode()
def measure(model: HUVR, pictures: list[Tensor]) -> dict[str, Any]:
    return {
        "sizes": rounded(sizes_row(model, pictures)),
        "scales": {f"{scale}x": rounded(scales_row(model, pictures, scale)) for scale in (2, 3)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="photos", help="to train on")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=4e-3)
    args = parser.parse_args()
    pictures = photographs(held_out_only=args.data == "photos")
    figures = {}
    for name, row in ROWS.items():
        model = train(args.data, args.steps, args.lr, **row)
        figures[name] = measure(model, list(pictures.values()))
        print(name, figures[name], flush=True)
    data = f"trained on {short(args.data)}; measured on scikit-image's {', '.join(pictures)}"
    config = {"steps": args.steps, "batch": 16, "optimizer": "muon", "lr": args.lr, "training_size": SIZE, "mixed_sizes": MIXED}
    write_record("any_size", data, config, figures)


if __name__ == "__main__":
    main()
