"""Files to pictures: whatever Pillow can open becomes upright RGB."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from huvr.errors import HuvrError

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".tga",
    ".heic", ".heif",  # which take a plugin of Pillow: named, where there is none
})  # fmt: skip


def list_images(folder: str | Path) -> list[Path]:
    """All images below ``folder``, sorted; links are followed, but hidden files and folders are not looked at.

    Raises:
        HuvrError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HuvrError(f"{folder}: no such folder")
    if not (found := sorted(images_below(folder))):
        raise HuvrError(f"{folder}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def images_below(folder: Path) -> Iterator[Path]:
    """The same one by one, in no order; none where there are none."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [each for each in folders if not hidden(each) and not leads_back(Path(parent, each))]
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not hidden(name):
                yield Path(parent, name)


def hidden(name: str) -> bool:
    """As what tools keep beside images is: ``.ipynb_checkpoints``, ``.thumbnails``."""
    return name.startswith(".")


def leads_back(folder: Path) -> bool:
    """Whether it is a link to one that the way to it came through."""
    return folder.is_symlink() and folder.resolve() in {each.resolve() for each in folder.absolute().parents}


def read_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """A path or the bytes of a file to an upright RGB picture.

    The EXIF rotation is applied, grey of 16 bits (0 to 65535) or in floating point (0 to 1) is scaled to 8 bits,
    transparency is laid over white, and of an animation the first frame is taken.

    Args:
        source: a path, or the content of an image file.
        name: what an error calls it; the path by default.

    Raises:
        HuvrError: naming the file, if it is missing or not a readable image.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise HuvrError(f"{name}: no such file")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's readers raise anything, from SyntaxError to struct.error
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise HuvrError(f"{name}: not a readable image ({reason})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # grey of more than 8 bits, which Pillow's own conversion would clip at 255
        numbers, most = np.asarray(image), 1 if image.mode == "F" else 65535
        if not (numbers.min() >= 0 and numbers.max() <= most):  # nor NaN
            raise ValueError(f"grey from {numbers.min():g} to {numbers.max():g}: expected 0 to {most}")
        image = Image.fromarray((numbers * 255.0 / most).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
