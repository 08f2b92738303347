"""``huvr reconstruct``: photos through TinToks and back."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from huvr.commands.photos import opened
from huvr.data import list_images
from huvr.data import photos as embedded
from huvr.errors import HuvrError
from huvr.metrics import psnr
from huvr.model import HUVR, Tokens
from huvr.viz import ERROR_GAIN, panel, save_png, to_uint8
from huvr.weights import SHIPPED, load

LARGE = 8  # times the pixels of an image in training: from there on attention takes most of the time


@torch.no_grad()
def reconstruct(
    photos: list[Path],
    *,
    encoder: str = SHIPPED,
    out: Path = Path("out"),
    scale: int = 1,
    size: int | None = None,
    refine: int = 0,
    tile: int | None = None,
) -> None:
    """Draw photos from their TinToks, and print the PSNR of each and the mean.

    For PHOTO.jpg, OUT/PHOTO_panel.png shows input | reconstruction | error | PCA of the standard tokens.
    Photos may have any size and aspect. The PSNR compares the unclamped reconstruction, as the paper does.

    Args:
        photos: image files, or folders of them; "photos" for what the data set of that name holds out.
        encoder: the network that comes with huvr, or whatever else huvr.load opens: a run, a directory, a checkpoint, a
            Hugging Face repository.
        out: folder for the pictures; those of an earlier call are overwritten.
        scale: also draw every reconstruction this many times as large, OUT/PHOTO_x2.png for 2.
        size: resize photos first so that the shorter side has this many pixels.
        refine: steps of descent that look for better TinToks of each photo; 30 take some thirty times as long as encoding it.
        tile: look at photos in tiles of at most this many pixels along each side, for those much larger than what the network
            was trained on: 256 for the one that comes with huvr.
    """
    if refine < 0:
        raise HuvrError(f"refine {refine}: expected 0 or more")
    if scale < 1:
        raise HuvrError(f"scale {scale}: expected 1 or more")
    if size is not None and size < 1:
        raise HuvrError(f"size {size}: expected 1 or more")
    photos = [path for given in photos for path in (held_out() if given == Path("photos") and not given.exists() else [given])]
    targets = pictures(photos, out)
    model = load(encoder, "cuda" if torch.cuda.is_available() else "cpu")
    device = next(model.parameters()).device
    if tile is not None and tile < model.patch:
        raise HuvrError(f"tile {tile}: expected {model.patch} pixels, those of a patch, or more")
    scores = []
    for path, image in opened(list(targets), size, required=photos):
        image = image.to(device)
        if tile is None and image.shape[-2:].numel() > LARGE * model.config.image_size**2:
            height, width = image.shape[-2:]
            tqdm.write(f"{path}: {height}x{width} pixels; --tile {model.config.image_size} would take less time", file=sys.stderr)
        rows, columns = (pieces(side, tile or side + model.patch, model.patch) for side in image.shape[-2:])
        parts = [[draw(model, image[..., row, column], refine, scale) for column in columns] for row in rows]
        drawn, larger, standard = (joined([[part[kind] for part in line] for line in parts]) for kind in range(3))
        tokens = Tokens(standard.mean((2, 3)), standard.flatten(2).mT, (standard.shape[2], standard.shape[3]))
        scores.append(psnr(drawn, image).item())
        save_png(panel(image, drawn, tokens, model.patch), f"{targets[path]}_panel.png")
        if scale > 1:
            save_png(to_uint8(larger[0]), f"{targets[path]}_x{scale}.png")
        print(f"{path}  {scores[-1]:.2f} dB")
    print(f"mean PSNR of {len(scores)}: {sum(scores) / len(scores):.2f} dB; panels (error times {ERROR_GAIN}) in {out}")


def pieces(side: int, tile: int, patch: int) -> list[slice]:
    """Cuts a side into pieces of at most ``tile`` pixels, of whole patches but for the last, as equal as these allow."""
    patches = -(-side // patch)
    count = -(-patches // (tile // patch))
    edges = [patch * (number * patches // count) for number in range(count)]
    return [slice(start, end) for start, end in itertools.pairwise([*edges, side])]


def draw(model: HUVR, image: Tensor, refine: int, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image ``(1, 3, H, W)`` from its TinToks, the same at ``scale``, and its standard tokens as a map ``(1, D, h, w)``."""
    tokens = model.encode(image)
    decoded = model.expand(model.refine(model.compress(tokens), image, refine))
    height, width = image.shape[-2:]
    drawn = model.render(decoded, (height, width))
    return drawn, model.render(decoded, (height, width), scale) if scale > 1 else drawn, tokens.map


def joined(parts: list[list[Tensor]]) -> Tensor:
    """Pictures or maps, rows of columns, as one."""
    return torch.cat([torch.cat(row, dim=-1) for row in parts], dim=-2)


def held_out() -> list[Path]:
    """The photographs inside scikit-image that ``photos`` never trains on."""
    return embedded.paths()["validation"]


def pictures(photos: list[Path], out: Path) -> dict[Path, Path]:
    """Every photo with the path of its pictures up to ``_panel.png``.

    Folders keep their inner structure, equal names get numbers.

    Raises:
        HuvrError: for a photo or folder that does not exist, before any work is done.
    """
    targets: dict[Path, Path] = {}
    taken: set[Path] = set()
    for given in photos:
        if not given.exists():
            raise HuvrError(f"{given}: no such file or folder")
        for path in photos_in(given, out) if given.is_dir() else [given]:
            name = out / (path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix("")
            names = itertools.chain([name], (name.with_name(f"{name.name}-{number}") for number in itertools.count(2)))
            targets[path] = next(free for free in names if free not in taken)
            taken.add(targets[path])
    return targets


def photos_in(folder: Path, out: Path) -> list[Path]:
    """The images below a folder, but for what an earlier call drew into ``out`` inside of it."""
    drawn = out.absolute() if folder.absolute() in out.absolute().parents else None
    return [path for path in list_images(folder) if drawn not in path.absolute().parents]
