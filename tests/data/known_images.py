"""Pictures whose number can be read off any crop of them, in folders and in Parquet files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor


def flat(number: int) -> Image.Image:
    """One colour throughout, with the number as its red."""
    return Image.new("RGB", (24, 20), (number, 255 - number, 7))


def flat_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    flat(number).save(buffer, "png")
    return buffer.getvalue()


def numbers(batches: Iterable[dict[str, Tensor]]) -> list[int]:
    """The numbers of all pictures, in order."""
    return [int(red) for batch in batches for red in batch["image"][:, 0, 0, 0]]


def write_folder(folder: Path, pictures: Iterable[int], corrupt: Iterable[int] = ()) -> Path:
    """``010.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in pictures:
        (folder / f"{number:03}.png").write_bytes(flat_bytes(number))
    for number in corrupt:
        (folder / f"{number:03}.png").write_bytes(b"no picture")
    return folder


def write_pack(file: Path, pictures: Iterable[int], corrupt: Iterable[int] = ()) -> Path:
    """A Parquet file without any metadata of the ``datasets`` library; the label of a picture is its number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    bad = set(corrupt)
    rows = [
        {"image": {"bytes": b"bad" if number in bad else flat_bytes(number), "path": f"{number:03}.png"}, "label": number}
        for number in sorted({*pictures, *bad})
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def write_tar(file: Path, pictures: Iterable[int]) -> Path:
    """A WebDataset file as its own tools leave it: ``010.png`` and ``010.cls`` side by side, and what else there is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as pack:
        for number in pictures:
            for suffix, content in (("png", flat_bytes(number)), ("cls", str(number).encode()), ("json", b'{"text": "grey"}')):
                entry = tarfile.TarInfo(f"{number:03}.{suffix}")
                entry.size = len(content)
                pack.addfile(entry, io.BytesIO(content))
    return file
