"""``huvr encode``: the tokens of a folder of images, in a Parquet file.

To have them back::

    row = pyarrow.parquet.read_table("tokens.parquet").slice(0, 1).to_pylist()[0]
    patches = numpy.array(row["patches"], dtype=numpy.float32)      # (grid_h * grid_w, D)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from huvr.commands.photos import opened
from huvr.data import list_images
from huvr.errors import HuvrError
from huvr.files import whole
from huvr.model import HUVR
from huvr.parquet import token_columns
from huvr.weights import SHIPPED, load

ROWS = 128  # images per row group: what is held in memory, and what a reader fetches at once


@torch.no_grad()
def encode(
    folder: Path,
    *,
    encoder: str = SHIPPED,
    out: Path,
    tokens: Literal["standard", "tintok", "both"] = "both",
    size: int | None = None,
    batch_size: int = 16,
    refine: int = 0,
) -> None:
    """Write the tokens of all images below FOLDER to a Parquet file, one row per image.

    Columns: path (below FOLDER), height and width in pixels, grid_h and grid_w in patches; cls (D numbers) and
    patches (grid_h · grid_w rows of D) hold the standard tokens, tintok_cls and tintok_patches the TinToks, all in
    float16. The encoder's name is in the file's metadata. Files that are no images are named and skipped.

    Args:
        folder: any folder of images.
        encoder: the network that comes with huvr, or whatever else huvr.load opens: a run, a directory, a checkpoint, a
            Hugging Face repository.
        out: the file to write; an old one is replaced when the new one is complete.
        tokens: which tokens.
        size: resize images first so that the shorter side has this many pixels.
        batch_size: images per pass; only neighbours of equal size share one.
        refine: steps of descent that look for TinToks from which each image is drawn better.
    """
    if refine < 0:
        raise HuvrError(f"refine {refine}: expected 0 or more")
    if refine and tokens == "standard":
        raise HuvrError(f"refine {refine}: it is of TinToks, and tokens standard writes none")
    for name, value in (("batch_size", batch_size), ("size", size)):
        if value is not None and value < 1:
            raise HuvrError(f"{name} {value}: expected 1 or more")
    if out.is_dir():
        raise HuvrError(f"cannot write {out}: it is a folder, expected the name of a file")
    paths = list_images(folder)
    if strange := next((path for path in paths if not encodable(path.relative_to(folder).as_posix())), None):
        raise HuvrError(f"{os.fsencode(strange)!r}: a name that is not UTF-8, which no Parquet file can hold: rename it")
    model = load(encoder, "cuda" if torch.cuda.is_available() else "cpu")
    images = ((path.relative_to(folder).as_posix(), image) for path, image in opened(paths, size))
    pieces = (table(model, names, batch, tokens, refine) for names, batch in batches(images, batch_size))
    with whole(out) as temporary:
        count = write((piece.replace_schema_metadata({"encoder": encoder}) for piece in pieces), temporary)
    print(f"tokens of {count} images in {out}")


def encodable(name: str) -> bool:
    """Whether a name is text; Python passes on the bytes of others as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def batches(images: Iterable[tuple[str, Tensor]], size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Runs of at most ``size`` images ``(1, 3, H, W)`` of equal shape, with their names."""
    names: list[str] = []
    batch: list[Tensor] = []
    for name, image in images:
        if batch and (len(batch) == size or image.shape != batch[0].shape):
            yield names, torch.cat(batch)
            names, batch = [], []
        names.append(name)
        batch.append(image)
    if batch:
        yield names, torch.cat(batch)


def table(model: HUVR, names: list[str], images: Tensor, tokens: str, refine: int) -> pa.Table:
    """The rows of one batch."""
    images = images.to(next(model.parameters()).device)
    standard = model.encode(images)
    (height, width), (grid_h, grid_w) = images.shape[-2:], standard.grid
    sizes = {"height": height, "width": width, "grid_h": grid_h, "grid_w": grid_w}
    columns: dict[str, Any] = {"path": names}
    columns |= {name: pa.array([value] * len(names), pa.int32()) for name, value in sizes.items()}
    if tokens in ("standard", "both"):
        columns |= token_columns("", standard)
    if tokens in ("tintok", "both"):
        columns |= token_columns("tintok_", model.refine(model.compress(standard), images, refine))
    return pa.table(columns)


def write(pieces: Iterable[pa.Table], target: Path) -> int:
    """Tables to one Parquet file in row groups of about ``ROWS``; returns the number of rows."""
    waiting: list[pa.Table] = []
    count = 0
    writer = None
    try:
        for piece in pieces:
            writer = writer or pq.ParquetWriter(target, piece.schema)
            waiting.append(piece)
            count += len(piece)
            if sum(map(len, waiting)) >= ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if writer and waiting:
            writer.write_table(pa.concat_tables(waiting))
    finally:
        if writer:
            writer.close()
    return count
