"""Pictures for the benchmarks: a Parquet pack, or the photographs that scikit-image ships."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF


def load_pictures(source: str, shorter: int) -> tuple[list[Tensor], list[Tensor], str]:
    """Training and held-out uint8 ``(3, H, W)`` pictures with the given shorter side, and the data in words."""
    rows = pq.read_table(source, columns=["image"]).column("image").to_pylist()
    pictures = [shrunk(Image.open(io.BytesIO(row["bytes"])), shorter) for row in rows]
    held_out = len(pictures) // 10
    name = f"{Path(source).parent.name}/{Path(source).name}"
    words = f"{name}, shorter side {shorter}: {len(pictures) - held_out} pictures to train, the last {held_out} held out"
    return pictures[:-held_out], pictures[-held_out:], words


def shrunk(picture: Image.Image, shorter: int) -> Tensor:
    """RGB, shorter side as given, uint8 ``(3, H, W)``."""
    return TF.resize(TF.pil_to_tensor(picture.convert("RGB")), [shorter], antialias=True)
