"""Is the way to a probe's features right? Real networks with the classifiers they came with, through the same data path.

    python benchmarks/harness.py --sample imagenet1k-sample-256 --imagenette imagenette-160 --vit FILE --mobilenet FILE

The images are read, resized, cropped and normalised as ``huvr probe`` does; the network's own classifier then answers for
all 1000 classes. Beside ours stand the same images through timm's own transforms, and figures of the same weights from
elsewhere: these come from 1000 photographs before they were shrunk and compressed again, ours from 900 of them after that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from common import short, write_record
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from tqdm import tqdm

from huvr.data.loader import images_of
from huvr.data.sources import open_splits
from huvr.data.transforms import centre_crop
from huvr.tasks.accuracy import Accuracy
from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.labelled import labelled
from huvr.tasks.looks import looks_at

HALVES = (0.5, 0.5, 0.5)
RESIZE, CROP = 248, 224
# Of the same files with 1000 photographs, one a class, 900 of which are ours; resize 248, crop 224.
ELSEWHERE = {
    "vit_tiny_patch16_224": {"elsewhere": 82.8, "elsewhere_top5": 96.5},
    "mobilenetv2_100": {"elsewhere": 89.5, "elsewhere_top5": 98.5},
}


@torch.inference_mode()
def answers(encoder: FrozenEncoder, root: str, split: str, view: Callable[[Image.Image], Tensor]) -> dict[str, float]:
    """Accuracy of the network's own classifier over ImageNet's 1000 classes, in per cent; ``view`` is as in a probe."""
    rows = labelled(open_splits(root)[split], root, None)
    truth = imagenet_labels(Path(root) / f"{split}.parquet")
    accuracy, seen = Accuracy(1000, encoder.device), 0
    for batch in tqdm(looks_at(rows, view, 50, workers=0), short(root), disable=None):
        normalised = (images_of(batch) - encoder.mean) / encoder.std
        accuracy.add(encoder.network(normalised), truth[batch["row"]])
        seen += len(normalised)
    return {"images": seen, "top1": round(accuracy.top1, 2), "top5": round(accuracy.top5, 2)}


def imagenet_labels(pack: Path) -> Tensor:
    """ImageNet's own number of each image: ImageNette keeps it in a column beside its ten."""
    columns = pq.read_schema(pack).names
    name = "imagenet_label" if "imagenet_label" in columns else "label"
    return torch.from_numpy(pq.read_table(pack, columns=[name])[name].to_numpy().astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", required=True, help="Folder with train.parquet: photographs of all of ImageNet's classes.")
    parser.add_argument("--imagenette", required=True, help="Folder with validation.parquet of ImageNette.")
    parser.add_argument("--vit", required=True, help="Weights of vit_tiny_patch16_224 with its classifier.")
    parser.add_argument("--mobilenet", required=True, help="Weights of mobilenetv2_100 with its classifier.")
    options = parser.parse_args()
    networks = {
        "vit_tiny_patch16_224": EncoderConfig("timm:vit_tiny_patch16_224", weights=options.vit, mean=HALVES, std=HALVES),
        "mobilenetv2_100": EncoderConfig(
            "timm:mobilenetv2_100", weights=options.mobilenet, mean=HALVES, std=HALVES, arguments={"pad_type": "same"}
        ),
    }
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, config in networks.items():
        encoder = FrozenEncoder(config)
        by_timm = create_transform((3, CROP, CROP), interpolation="bicubic", crop_pct=CROP / RESIZE, normalize=False)
        timm = answers(encoder, options.sample, "train", by_timm)
        figures[name] = {
            "photographs of all classes": answers(encoder, options.sample, "train", centre_crop(CROP, RESIZE))
            | {"timm_top1": timm["top1"], "timm_top5": timm["top5"]}
            | ELSEWHERE[name],
            "ImageNette": answers(encoder, options.imagenette, "validation", centre_crop(CROP)),
        }
    figures["mobilenetv2_100"]["ImageNette"] |= {"elsewhere": 62.0}
    data = f"{short(options.sample)}, train; {short(options.imagenette)}, validation"
    write_record("harness", data, {"normalisation": HALVES, "resize": RESIZE, "crop": CROP}, figures)


if __name__ == "__main__":
    main()
