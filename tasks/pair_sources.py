"""Where images with a target per pixel come from: packs, hub data sets and folders, as tables of undecoded pairs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from huvr.data.folders import SPLIT_OF
from huvr.data.reading import list_images
from huvr.data.sources import holds_images, open_tables, packs_in
from huvr.errors import HuvrError

ALLOWED = "a Parquet or Arrow file, a folder of them, a folder of images and targets, or the id of a Hugging Face data set"
COLUMNS = datasets.Features({"image": datasets.Image(decode=False), "target": datasets.Image(decode=False)})
# Palettes are kept as indices: their colours are for people. "1" is black and white, "F" float32, "I…" 16 or 32 bits.
ONE_NUMBER = ("1", "L", "P", "F", "I", "I;16", "I;16B", "I;16L")


def open_pairs(root: str, target: str) -> dict[str, datasets.Dataset]:
    """All splits of ``root`` by name, with the columns ``image`` and ``target``, undecoded.

    Args:
        root: one of ``ALLOWED``. Folders are ``SPLIT/images`` and ``SPLIT/TARGET``, or ``images/SPLIT`` and
            ``TARGET/SPLIT``, as in ADE20K; their files go by the same names but for the suffix.
        target: name of the column, or of the folder, which may have an s at its end.

    Raises:
        HuvrError: where there are no such data, naming the columns or the file without a partner.
    """
    path = Path(root).expanduser()
    if path.is_dir() and (_images_in(path) or not packs_in(path)):  # a folder may hold the archive it came in
        return _folders(root, path, target)
    return {split: _columns(root, table, target) for split, table in open_tables(root, False, ALLOWED).items()}


def _columns(root: str, table: datasets.Dataset, target: str) -> datasets.Dataset:
    if target == "image":
        raise HuvrError("target 'image': that column holds the images; choose the one of the targets")
    for column in ("image", target):
        if not holds_images(table.features.get(column)):
            problem = "holds no images" if column in table.features else "is missing"
            found = ", ".join(table.features)
            raise HuvrError(f"data root {root!r}: column {column!r} {problem} (it has {found}); data.target names the targets")
    return table.select_columns(["image", target]).rename_column(target, "target").cast(COLUMNS)


def _images_in(path: Path) -> bool:
    return any((path / name).is_dir() for split in SPLIT_OF for name in (f"{split}/images", f"images/{split}"))


def _folders(root: str, path: Path, target: str) -> dict[str, datasets.Dataset]:
    tables = {}
    for folder, split in SPLIT_OF.items():
        for pattern in (f"{folder}/{{}}", f"{{}}/{folder}"):
            images = path / pattern.format("images")
            targets = [path / pattern.format(name) for name in (target, f"{target}s")]
            if images.is_dir():
                found = next((each for each in targets if each.is_dir()), None)
                if found is None:
                    raise HuvrError(f"{images}: no folder {targets[0]} or {targets[1]} of its targets; set data.target")
                tables[split] = _matched(images, found)
    if not tables:
        raise HuvrError(
            f"data root {root!r}: neither packs nor folders of pairs; expected SPLIT/images and SPLIT/{target}, "
            f"or images/SPLIT and {target}/SPLIT, SPLIT being one of {', '.join(SPLIT_OF)}"
        )
    return tables


def _matched(images: Path, targets: Path) -> datasets.Dataset:
    """The files of two folders that go by the same name, whatever their suffixes."""
    sides = [_by_name(images), _by_name(targets)]
    if alone := sorted(sides[0].keys() ^ sides[1].keys()):
        file, other = (sides[0][alone[0]], targets) if alone[0] in sides[0] else (sides[1][alone[0]], images)
        raise HuvrError(f"{file}: no file of that name in {other} (one of {len(alone)} files without a partner)")
    return datasets.Dataset.from_dict({"image": [*sides[0].values()], "target": [sides[1][key] for key in sides[0]]}, COLUMNS)


def _by_name(folder: Path) -> dict[Path, str]:
    files = list_images(folder)
    named = {file.relative_to(folder).with_suffix(""): str(file) for file in files}
    if len(named) < len(files):
        twin = next(file for file in files if str(file) not in named.values())
        raise HuvrError(f"{twin}: another file has the same name but for the suffix; expected one of each name")
    return named


def content(cell: dict[str, Any] | None, name: str) -> tuple[bytes | str, str]:
    """The bytes or the path in a cell, and what an error calls it: its path, or ``name`` for bytes.

    Raises:
        HuvrError: for an empty cell.
    """
    if cell and cell["bytes"] is not None:
        return cell["bytes"], name
    if cell and cell["path"]:
        return cell["path"], cell["path"]
    raise HuvrError(f"{name}: empty")


def orientation(source: bytes | str) -> int:
    """How the EXIF tag of an image file says that its pixels are to be turned, 1 to 8; 1 is not at all."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1)


def decode_target(source: bytes | str, name: str) -> Tensor:
    """A file with one number per pixel as ``(H, W)``: int64 of whole numbers as they are stored, float32 of a float TIFF.

    Raises:
        HuvrError: naming the file, if it is missing, unreadable, or has colours.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            mode, numbers = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's readers raise anything, from SyntaxError to struct.error
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise HuvrError(f"{name}: not a readable target ({reason})") from error
    if mode not in ONE_NUMBER:
        raise HuvrError(f"{name}: a target of mode {mode}; expected one number a pixel: grey, palette, 16 bits or float")
    return torch.from_numpy(numbers.astype(np.float32 if mode == "F" else np.int64))
