"""``huvr generate``: pictures from a trained generator."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from huvr.errors import HuvrError
from huvr.files import whole
from huvr.viz import save_png, to_uint8

from ..base import Precision
from .generator import load_generator
from .objective import Sampler
from .sampling import Sampling

GRID = 1024  # pictures that a grid may hold


def generate(
    *,
    generator: str,
    out: Path,
    classes: str | None = None,
    per_class: int = 8,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    sampler: Sampler | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    scale: int = 1,
    precision: Precision = "fp32",
    encoder: str | None = None,
) -> None:
    """Draw pictures from noise.

    OUT says what becomes of them: NAME.png is a grid, a row for each class; NAME.npz is what the evaluator of ADM reads
    (arr_0: uint8 pictures, N, H, W, 3; arr_1: int64 labels, where there are any); anything else is a folder of PNG files, in
    subfolders by class. In fp32 the pictures of a seed are the same whatever the batch size.

    Args:
        generator: a run of huvr fit --config generate/…, or a checkpoint of one.
        out: a .png or .npz file, or a folder that is new or empty.
        classes: ids or names separated by commas, such as 207,360; without, pictures of no class in particular.
        per_class: pictures of each class; without classes, altogether.
        guidance: scale of classifier-free guidance; 1 is none.
        interval: guide only between these shares of the way from data, 0, to noise, 1.
        sampler: euler or heun for a generator trained by flow, ddpm or ddim for one by diffusion; the first is usual.
        steps: of the sampler; euler takes 50, heun 25, ddpm 250, ddim 50 if nothing is said.
        seed: of the noise.
        batch_size: pictures at once.
        scale: draw every picture this many times as large.
        precision: bf16 runs the transformer under autocast.
        encoder: whatever huvr.load opens, in place of the one that the generator names.
    """
    for name, value in (("per_class", per_class), ("batch_size", batch_size), ("scale", scale)):
        if value < 1:
            raise HuvrError(f"{name} {value}: expected 1 or more")
    sampling = Sampling(sampler, steps, guidance, interval)
    suffix = out.suffix.lower()
    check_out(out, suffix)
    trained = load_generator(generator, encoder, "cuda" if torch.cuda.is_available() else "cpu")
    labels: list[int] | None = None
    if classes is not None:
        labels = [label for label in trained.labels(classes) for _ in range(per_class)]
    count = len(labels) if labels else per_class
    if suffix == ".png" and count > GRID:
        raise HuvrError(f"{count} pictures are too many for a grid, at most {GRID}: choose a folder or an .npz file for out")
    drawn = trained.pictures(count, labels, sampling, seed, batch_size, scale, precision)
    pictures = (to_uint8(picture) for picture in drawn)
    if suffix == ".png":
        save_png(make_grid(list(pictures), nrow=per_class if labels else round(count**0.5)), out)
    elif suffix == ".npz":
        with whole(out) as temporary:
            write_npz(pictures, labels, count, temporary)
    else:
        with whole(out) as temporary:
            write_folder(pictures, labels, trained.space.classes, temporary)
    print(f"{count} pictures in {out}")


def check_out(out: Path, suffix: str) -> None:
    """Raise a HuvrError where pictures, once drawn, could not be written."""
    if suffix in (".png", ".npz"):
        if out.is_dir():
            raise HuvrError(f"{out} is a folder already: choose a {suffix} file, or a folder that is new or empty")
    elif suffix == ".npy" or suffix in Image.registered_extensions():
        raise HuvrError(f"out {out}: {suffix} files are not written; choose a .png or .npz file, or a folder")
    elif out.exists() and (out.is_file() or any(out.iterdir())):
        raise HuvrError(f"{out} exists already: choose a new or empty folder")


def write_npz(pictures: Iterator[Tensor], labels: Sequence[int] | None, count: int, path: Path) -> None:
    """uint8 pictures ``(3, H, W)`` one after the other into the array of an ``.npz`` file, never all in memory."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for number, picture in enumerate(pictures):
                array = picture.permute(1, 2, 0).contiguous().numpy()
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *array.shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(array.data)
        if labels:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.array(labels, np.int64))


def write_folder(pictures: Iterator[Tensor], labels: Sequence[int] | None, names: Sequence[str], folder: Path) -> None:
    """``000000.png`` …; with labels in a subfolder for each class, which ``--data.root`` reads again."""
    for number, picture in enumerate(pictures):
        where = folder / subfolder(labels[number], names[labels[number]]) if labels else folder
        save_png(picture, where / f"{number:06d}.png")


def subfolder(label: int, name: str) -> str:
    """Sorted as the labels are, and different where two classes share a name."""
    return f"{label:04d}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[:60]}"
