"""Which classes are taken for which: a picture in the run folder and in TensorBoard, and the accuracy of each class."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from huvr.viz import ERROR_GAIN, heat, save_png, to_uint8

from .accuracy import Accuracy
from .base import FrozenEncoderTask

SIDE = 800  # pixels of the heat map, about
NAMED_CLASSES = 40  # names of more would not fit
FONT = 12  # pixels


def report(task: FrozenEncoderTask, accuracy: Accuracy, classes: list[str]) -> None:
    """Leave the accuracy of each class in the task's details, and ``confusion.png`` in its run folder and TensorBoard.

    Args:
        task: with its trainer.
        accuracy: of the test split, added up over all processes.
        classes: their names, by label.

    Raises:
        HuvrError: where the picture cannot be written.
    """
    task.details["top1_per_class"] = dict(zip(classes, accuracy.per_class(), strict=True))
    if accuracy.confusion is None or not task.trainer.is_global_zero:
        return
    drawn = picture(accuracy.confusion, classes)
    save_png(drawn, Path(task.trainer.default_root_dir) / "confusion.png")
    if isinstance(task.logger, TensorBoardLogger):
        task.logger.experiment.add_image("confusion", drawn, task.global_step)


def picture(confusion: Tensor, classes: list[str]) -> Tensor:
    """A heat map of shares: a row is a class, a column an answer, black 0 and white all images of the class.

    Args:
        confusion: images by class and by answer, ``(C, C)``.
        classes: their names; up to ``NAMED_CLASSES`` of them are written beside the rows and above the columns.

    Returns:
        uint8 ``(3, H, W)``.
    """
    counts = confusion.cpu().float()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    cell = max(1, SIDE // len(classes))
    squares = heat(shares[None] / ERROR_GAIN)[0].repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return to_uint8(squares) if len(classes) > NAMED_CLASSES else _named(to_uint8(squares), classes, cell)


def _named(squares: Tensor, classes: list[str], cell: int) -> Tensor:
    """The picture with the names of its rows on the left, and those of its columns above, read downwards."""
    rows = _names(classes, cell)
    columns = _names(classes[::-1], cell).rot90(-1, (1, 2))  # clockwise: the last name comes to stand first
    margin = rows.shape[2]
    out = torch.full((3, margin + squares.shape[1], margin + squares.shape[2]), 255, dtype=torch.uint8)
    out[:, margin:, :margin], out[:, :margin, margin:], out[:, margin:, margin:] = rows, columns, squares
    return out


def _names(classes: list[str], cell: int) -> Tensor:
    """Names one below the other, ``cell`` pixels each, flush right, as uint8 ``(3, C * cell, W)``."""
    font = ImageFont.load_default(FONT)
    width = max(round(font.getlength(name)) for name in classes) + FONT
    paper = Image.new("RGB", (width, cell * len(classes)), "white")
    pen = ImageDraw.Draw(paper)
    for number, name in enumerate(classes):
        pen.text((width - FONT / 2, (number + 0.5) * cell), name, "black", font, anchor="rm")
    return pil_to_tensor(paper)
