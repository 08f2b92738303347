"""Other people's labels for ImageNet's 1000 classes: ReaL and ObjectNet, read from the files they were released in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image
from timm.data import RealLabelsImagenet

from huvr.data.samples import Rows
from huvr.data.sources import open_splits
from huvr.errors import HuvrError
from huvr.files import read_json

from .labelled import classes_of, labelled

Answers = list[list[int]]  # the right ones of each image; an image without any is not counted
VALIDATION_IMAGES = 50_000
BORDER = 2  # red pixels round every image of ObjectNet, there to be cut off


def real_answers(file: str, rows: Rows, classes: int) -> Answers:
    """ReaL labels of ImageNet validation images ("Are we done with ImageNet?", arXiv 2006.07159).

    Args:
        file: ``real.json`` of google-research/reassessed-imagenet: a list with the labels of ILSVRC2012_val_00000001,
            …_00000002 and so on; or "timm" for the copy that timm ships.
        rows: the images, named as in the ImageNet release, in any order.
        classes: how many the classifier knows.

    Raises:
        HuvrError: for a file of another form, or images of other names.
    """
    if file == "timm":
        listed = list(RealLabelsImagenet([""] * VALIDATION_IMAGES).real_labels.values())
    else:
        listed = _json(Path(file))
        if not isinstance(listed, list) or not all(isinstance(each, list) for each in listed):
            raise HuvrError(f"{file}: expected a list of lists of labels, as real.json is")
    _check(file, listed, classes)
    return [listed[number] for number in _validation_numbers(rows, file, len(listed))]


def _validation_numbers(rows: Rows, file: str, known: int) -> Iterable[int]:
    """The places of the images in the list, from the names of their files."""
    cells = rows.table.with_format("arrow")[:]["image"]  # not the images themselves, which may be in the table too
    names = pc.struct_field(cells, "path").take(rows.numbers).to_pylist()
    for name in names:
        found = re.search(r"ILSVRC2012_val_(\d{8})", name or "")
        if not found or not 1 <= int(found[1]) <= known:
            raise HuvrError(f"{rows.source}: {name} is none of the {known} images ILSVRC2012_val_00000001 … that {file} labels")
        yield int(found[1]) - 1


def objectnet(folder: str, classes: int) -> tuple[Rows, Answers]:
    """Images of ObjectNet whose class is one of ImageNet's too, and their ImageNet labels (Barbu et al., NeurIPS 2019).

    Args:
        folder: the release with ``images/CLASS/…`` and ``mappings/``.
        classes: how many the classifier knows, by ImageNet's numbers.

    Raises:
        HuvrError: for a folder or mappings of another form.
    """
    mappings = Path(folder) / "mappings"
    labels = _texts(mappings / "folder_to_objectnet_label.json")
    overlap = _texts(mappings / "objectnet_to_imagenet_1k.json")  # ImageNet's names, "; " between them
    lines, numbers = _lines(mappings / "imagenet_to_label_2012_v2"), _json(mappings / "pytorch_to_imagenet_2012_id.json")
    try:
        number_of = {lines[line]: int(number) for number, line in numbers.items()}
        mapped = {folder: overlap[label].split("; ") for folder, label in labels.items() if label in overlap}
        answers = {folder: [number_of[name] for name in names] for folder, names in mapped.items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise HuvrError(f"{mappings}: these files do not belong together ({type(error).__name__}: {error})") from None
    _check(str(mappings), answers.values(), classes)

    rows = labelled(open_splits(str(Path(folder) / "images"))["train"], f"{folder}/images", None)
    names = classes_of(rows, np.zeros(1, int))
    found = [names[label] for label in rows.table["label"]]
    rows.numbers = np.flatnonzero([name in answers for name in found])
    if not len(rows):
        raise HuvrError(f"{folder}/images: none of the class folders that {mappings} maps to ImageNet")
    return rows, [answers[found[number]] for number in rows.numbers]


def without_border(image: Image.Image) -> Image.Image:
    """An image of ObjectNet without its red border."""
    return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


def _check(source: str, answers: Iterable[list[int]], classes: int) -> None:
    for label in (label for each in answers for label in each):
        if not isinstance(label, int) or not 0 <= label < classes:
            raise HuvrError(f"{source}: label {label!r}; the training split has classes 0 to {classes - 1}, ImageNet 0 to 999")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HuvrError(f"{file}: not a readable JSON file ({error})") from None


def _texts(file: Path) -> dict[str, str]:
    content = read_json(file)
    if not all(isinstance(each, str) for each in content.values()):
        raise HuvrError(f"{file}: expected an object of texts")
    return content


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise HuvrError(f"{file}: not a readable text file ({error})") from None
