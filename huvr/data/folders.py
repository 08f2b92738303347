"""Folders of images, in subfolders for splits and for classes, as tables."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

from datasets import ClassLabel, Dataset, Features, Image
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from huvr.data.reading import hidden, images_below, list_images
from huvr.errors import HuvrError

HELD_OUT_SPLITS = ("validation", "val", "valid", "dev", "test")
SPLITS = ("train", *HELD_OUT_SPLITS)
SPLIT_OF = {"training": "train", "testing": "test", **{split: split for split in SPLITS}}  # by names of folders and files
STRAY = 0.1  # share of the images of a folder


def open_folder(root: Path) -> dict[str, Dataset]:
    """The splits of a folder of images: its subfolders of that name, or itself as "train"; with labels by class subfolders.

    Raises:
        HuvrError: there are no images in it, or it is not clear which folders are splits.
    """
    folders = split_folders(root)
    if folders:
        _nothing_else_meant(root, folders)
    folders = folders or {"train": root}
    files = {split: list_images(folder) for split, folder in folders.items()}
    classes = {split: [path.relative_to(folders[split]).parts[0] for path in paths] for split, paths in files.items()}
    labelled = {split: not _beside_classes(folders[split], files[split]) for split in files}
    names = sorted({name for split, found in classes.items() if labelled[split] for name in found})
    number = {name: index for index, name in enumerate(names)}
    return {
        split: listing(paths, [number[name] for name in classes[split]], names) if labelled[split] else listing(paths)
        for split, paths in files.items()
    }


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of ``root`` that are named after splits, by split.

    Those called exactly so; or, where they hold images and make a split to learn from and another one, such as Train and Testing.
    """
    named = {split: root / split for split in SPLITS if (root / split).is_dir()}
    loosely = dict(named)
    for folder in sorted(each for each in root.iterdir() if each.is_dir()):
        split = SPLIT_OF.get(folder.name.lower())
        if split is None or split in named or next(images_below(folder), None) is None:
            continue
        if split in loosely and loosely[split].resolve() != folder.resolve():
            names = f"{loosely[split].name} and {folder.name}"
            raise HuvrError(f"data root {str(root)!r}: {names} are both the split {split}: rename one")
        loosely.setdefault(split, folder)
    found = loosely if "train" in loosely and len(loosely) > 1 else named
    return {split: found[split] for split in SPLITS if split in found}


def _nothing_else_meant(root: Path, splits: dict[str, Path]) -> None:
    """Folders of images beside those of splits are passed over with a warning, or may be classes: then a HuvrError."""
    beside = (each for each in root.iterdir() if each.is_dir() and not hidden(each.name) and each not in splits.values())
    if not (others := sorted(folder.name for folder in beside if next(images_below(folder), None))):
        return
    named, named_others = (", ".join(folder.name for folder in splits.values()), shorten(", ".join(others), 80))
    (first, *more) = splits.values()
    if not more and len(others) > 1 and not any(each.is_dir() for each in first.iterdir()):
        raise HuvrError(
            f"data root {str(root)!r}: is {named} a split, or a class as {named_others}? Name the folder of the split, "
            "put the classes into a folder train, or move what is not meant"
        )
    rank_zero_warn(f"data root {str(root)!r}: the splits are {named}; passed over: {named_others}")


def _beside_classes(folder: Path, files: list[Path]) -> bool:
    """Whether images lie in the folder itself, where there are no classes; a warning where they are few."""
    stray = [path for path in files if path.parent == folder]
    if 0 < len(stray) <= STRAY * len(files):
        rank_zero_warn(
            f"{folder}: no labels, since of {len(files)} images {len(stray)} lie in no class folder, such as {stray[0].name}"
        )
    return bool(stray)


def listing(paths: list[Path], labels: list[int] | None = None, names: list[str] | None = None) -> Dataset:
    columns, features = {"image": [str(path) for path in paths]}, {"image": Image(decode=False)}
    if labels is None:
        return Dataset.from_dict(columns, Features(features))
    return Dataset.from_dict(columns | {"label": labels}, Features(features | {"label": ClassLabel(names=names)}))
