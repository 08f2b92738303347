"""Pictures for the benchmarks: a Parquet pack, or the photographs that scikit-image ships."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from common import short
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from huvr.data import photos, read_image

NO_COLOUR = ("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png")


def load_pictures(source: str, shorter: int) -> tuple[list[Tensor], list[Tensor], str]:
    """Training and held-out uint8 ``(3, H, W)`` pictures with the given shorter side, and the data in words.

    Args:
        source: "photos", or a Parquet file whose last tenth is held out.
        shorter: in pixels.

    Raises:
        SystemExit: where there is no such file.
    """
    if source == "photos":
        splits = photos.paths()
        train, held_out = ([read_image(path) for path in splits[name]] for name in ("train", "validation"))
    elif not Path(source).is_file():
        raise SystemExit(f"--data {source}: expected a Parquet file of images, or photos")
    else:
        rows = pq.read_table(source, columns=["image"]).column("image").to_pylist()
        pictures = [read_image(row["bytes"]) for row in rows]
        train, held_out = pictures[: -(len(pictures) // 10)], pictures[-(len(pictures) // 10) :]
    words = f"{short(source)}, shorter side {shorter}: {len(train)} pictures to train, the last {len(held_out)} held out"
    return [shrunk(picture, shorter) for picture in train], [shrunk(picture, shorter) for picture in held_out], words


def photographs(held_out_only: bool) -> dict[str, Tensor]:
    """Scikit-image's colour photographs by name, uint8 ``(3, H, W)``; only those that ``photos`` never trains on, or all."""
    paths = photos.paths()
    wanted = paths["validation"] + ([] if held_out_only else paths["train"])
    return {path.name: TF.pil_to_tensor(read_image(path)) for path in wanted if path.name not in NO_COLOUR}


def shrunk(picture: Image.Image, shorter: int) -> Tensor:
    """RGB, shorter side as given, uint8 ``(3, H, W)``."""
    return TF.resize(TF.pil_to_tensor(picture), [shorter], antialias=True)
