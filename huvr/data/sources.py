"""Any image source to Hugging Face data sets with the columns ``image`` (undecoded) and, where there is one, ``label``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from huvr.data import photos
from huvr.data.folders import SPLIT_OF, listing, open_folder, split_folders
from huvr.data.reading import images_below
from huvr.errors import HuvrError, reason

Table: TypeAlias = Dataset | IterableDataset

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
ALLOWED = (
    "'photos', a folder of images, a Parquet, Arrow or WebDataset (.tar) file or a folder of them, "
    "or the id of a Hugging Face data set"
)
IN_A_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_OF)})(?![a-z])", re.IGNORECASE)


def open_splits(root: str, streaming: bool = False) -> dict[str, Table]:
    """All splits that ``root`` has, by name; a source that names none is all "train".

    In a folder with split folders of images, packs beside them are passed over, such as the archives they came in. Labels are
    numbers, names of classes, or the folders that hold the images; they are the same in all splits.

    Args:
        root: one of ``ALLOWED``.
        streaming: open packs and hub sources row by row, without a converted copy in the cache
            (folders of images are never copied).

    Raises:
        HuvrError: nothing is there, no images are in it, or images and packs of which either could be meant.
    """
    path = Path(root).expanduser()
    if root == "photos":
        if path.is_dir():
            rank_zero_warn("data root 'photos': the data set of that name, not the folder here, which is ./photos")
        return {split: listing(files) for split, files in photos.paths().items()}
    if path.is_dir() and not _packs_meant(path):
        return dict(open_folder(path))
    return {split: _columns(root, table) for split, table in _numbered(root, open_tables(root, streaming, ALLOWED)).items()}


def open_tables(root: str, streaming: bool, allowed: str) -> dict[str, Table]:
    """The splits of packs or of a data set of the hub, by name, with all their columns.

    Args:
        root: a Parquet, Arrow or WebDataset file, a folder of them, or the id of a Hugging Face data set.
        streaming: open them row by row.
        allowed: what ``root`` may be, for errors.

    Raises:
        HuvrError: nothing is there, or it cannot be read.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        packs = packs_in(path)
        return _load(root, streaming, packs[0].suffix, packs)
    if path.suffix in BUILDERS:
        if not path.is_file():
            raise HuvrError(f"data root {root!r}: no such file; allowed: {allowed}")
        return _load(root, streaming, path.suffix, [path])
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", root):
        problem = "not a data set" if path.exists() else "no such file or folder"
        raise HuvrError(f"data root {root!r}: {problem}; allowed: {allowed}")
    return _hub(root, streaming, allowed)


def packs_in(folder: Path) -> list[Path]:
    """Parquet files at most one folder deep, else Arrow files, else WebDataset files."""
    for suffix in BUILDERS:
        if found := sorted([*folder.glob(f"*{suffix}"), *folder.glob(f"*/*{suffix}")]):
            return found
    return []


def _packs_meant(root: Path) -> list[Path]:
    """The packs of a folder, unless its images are meant; raise a HuvrError where that is not clear."""
    packs = packs_in(root)
    image = next(images_below(root), None) if packs else None
    if image is None:
        return packs
    splits = [*split_folders(root).values()]
    if any(pack.parent in splits for pack in packs) or not any(next(images_below(split), None) for split in splits):
        raise HuvrError(
            f"data root {str(root)!r}: packs as well as images, {packs[0].relative_to(root)} and {image.relative_to(root)}: "
            "name the file or folder of those meant, or move the others"
        )
    return []


def _load(root: str, streaming: bool, suffix: str, files: list[Path]) -> dict[str, Table]:
    alone = Path(root).expanduser()
    parts = [(file.name,) if alone in (file, file.parent) else (file.parent.name, file.name) for file in files]
    splits = defaultdict(list)
    for file, split in zip(files, _splits_of(parts), strict=True):
        splits[split].append(str(file))
    try:
        names = {split: _class_names(files[0]) for split, files in splits.items()} if suffix == ".parquet" else {}
        tables = dict(load_dataset(BUILDERS[suffix], data_files=dict(splits), streaming=streaming))
    except Exception as error:  # a broken file surfaces as any of pyarrow's and datasets' errors
        raise HuvrError(f"data root {root!r}: not readable as {suffix[1:].capitalize()} ({_reason(error)})") from error
    if len({*names.values()} - {None}) > 1:  # datasets would read all splits by the names of one
        raise HuvrError(f"data root {root!r}: the splits {', '.join(names)} number their classes differently; write them alike")
    return tables


def _splits_of(parts: Sequence[Sequence[str]]) -> list[str]:
    """The split of each pack: what its folder or name begins with, else what they name last, such as imagenet1k-train-0000.tar.

    Args:
        parts: names of the folder, where it is one of the data, and of the file.
    """
    begun = [next((match for part in each if (match := IN_A_NAME.match(part))), None) for each in parts]
    within = [[None, *(match for part in each for match in IN_A_NAME.finditer(part))][-1] for each in parts]
    chosen = (first or last for first, last in zip(begun, within, strict=True))
    found = [SPLIT_OF[match[1].lower()] if match else "train" for match in chosen]
    # ab-test-0.parquet, ab-test-1.parquet: where none would be left to learn from, the name is no split
    return found if any(begun) or "train" in found else ["train"] * len(found)


def _class_names(file: str) -> tuple[str, ...] | None:
    """Names of the classes by label, where a Parquet file says them."""
    label = Features.from_arrow_schema(pq.read_schema(file)).get("label")
    return tuple(label.names) if isinstance(label, ClassLabel) else None


def _hub(root: str, streaming: bool, allowed: str) -> dict[str, Table]:
    try:
        # One quick question first: load_dataset asks an unreachable hub for half a minute.
        with suppress(OfflineModeIsEnabled):  # HF_HUB_OFFLINE=1: what is in the cache can still be loaded
            HfApi().dataset_info(root, timeout=10)
        return dict(load_dataset(root, streaming=streaming))
    except Exception as error:
        raise HuvrError(
            f"data root {root!r}: no such file or folder, and not to be had from the Hugging Face hub ({_reason(error)}); "
            f"allowed: {allowed}"
        ) from error


def _reason(error: BaseException) -> str:
    return reason(error.__cause__ or error)


def _numbered(root: str, tables: dict[str, Table]) -> dict[str, Table]:
    """Names of classes in a column ``label`` become their numbers, in the order of the alphabet over all splits."""
    kinds = {split: (table.features or {}).get("label") for split, table in tables.items()}
    if not all(isinstance(kind, Value) and "string" in kind.dtype for kind in kinds.values()):
        return tables
    if any(isinstance(table, IterableDataset) for table in tables.values()):
        rank_zero_warn(f"data root {root!r}: no labels, since those of a stream must be numbers: set data.streaming false")
        return tables
    names = {name for table in tables.values() for name in table.unique("label")}
    if None in names or len(names) > sum(map(len, tables.values())) / 2:
        why = "some rows have none" if None in names else "hardly two rows have the same text"
        rank_zero_warn(f"data root {root!r}: no labels, since {why} in the column label")
        return tables
    kind = ClassLabel(names=sorted(names))
    return {  # the column alone: a cast would write the images anew
        split: table.remove_columns("label").add_column("label", kind.str2int(table["label"][:]), feature=kind)
        for split, table in tables.items()
    }


def _columns(root: str, table: Table) -> Table:
    """Keep the image, undecoded so that a corrupt one can be named and skipped, and an integer label."""
    features = table.features or {}
    typed = (name for name, kind in features.items() if isinstance(kind, Image))
    image = "image" if holds_images(features.get("image")) else next(typed, None)
    if image is None:
        raise HuvrError(
            f"data root {root!r}: no image column among {', '.join(features)}; expected one called image or of type Image"
        )
    numbered = "label" if "label" in features else "cls"  # as WebDataset has it
    label = features.get(numbered)
    labelled = isinstance(label, ClassLabel) or (isinstance(label, Value) and "int" in label.dtype)
    names = {image: "image"} | ({numbered: "label"} if labelled else {})
    table = table.select_columns([*names])
    for old, new in names.items():
        table = table if old == new else table.rename_column(old, new)
    return table.cast_column("image", Image(decode=False))


def holds_images(kind: object) -> bool:
    """Whether a column can be read as images: typed so, or the bare bytes or path that such a column is made of."""
    if isinstance(kind, Value):
        return kind.dtype in ("binary", "large_binary", "string")
    return isinstance(kind, Image) or (isinstance(kind, dict) and "bytes" in kind)
