"""Image files as the verbs read them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_dtype
from tqdm import tqdm

from huvr.data import read_image
from huvr.errors import HuvrError


def opened(paths: Sequence[Path], size: int | None, required: Collection[Path] = ()) -> Iterator[tuple[Path, Tensor]]:
    """Each image with its path, float ``(1, 3, H, W)`` in [0, 1], behind a progress bar.

    Files that are no images are named on standard error, skipped and counted, but for those in ``required``.

    Args:
        paths: image files.
        size: pixels of the shorter side to resize to; None keeps every size.
        required: files that must be images.

    Raises:
        HuvrError: for a file of ``required`` that is no image, and where not one is.
    """
    skipped = 0
    for path in tqdm(paths, unit="image", disable=None):
        try:
            image = read_image(path)
        except HuvrError as error:
            if path in required:
                raise
            skipped += 1
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
        image = image if size is None else resize(image, [size], InterpolationMode.BICUBIC)
        yield path, to_dtype(pil_to_tensor(image), torch.float32, scale=True)[None]
    if skipped == len(paths):
        raise HuvrError(f"none of the {len(paths)} files is an image")
    if skipped:
        print(f"skipped {skipped} of {len(paths)} files", file=sys.stderr)
