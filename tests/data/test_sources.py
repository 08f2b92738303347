"""Sources of every kind, opened as tables of undecoded images."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value
from huggingface_hub import HfApi
from known_images import flat_bytes, write_folder, write_pack

from huvr.data import sources
from huvr.data.sources import open_splits
from huvr.errors import HuvrError


def files(table: Dataset) -> list[str]:
    return [Path(cell["path"]).name for cell in table["image"]]


def test_a_plain_folder_is_one_split_without_labels(tmp_path: Path) -> None:
    splits = open_splits(str(write_folder(tmp_path / "photos", [2, 0, 1])))
    assert list(splits) == ["train"]
    assert splits["train"].column_names == ["image"]
    assert files(splits["train"]) == ["000.png", "001.png", "002.png"]


def test_class_folders_label_their_images_by_name_and_alike_in_all_splits(tmp_path: Path) -> None:
    for folder, pictures in {"train/cat": [0], "train/dog": [1, 2], "val/dog": [3], "val/ape": [4]}.items():
        write_folder(tmp_path / folder, pictures)
    splits = open_splits(str(tmp_path))
    assert splits["train"].features["label"].names == ["ape", "cat", "dog"]
    assert (files(splits["train"]), splits["train"]["label"][:]) == (["000.png", "001.png", "002.png"], [1, 2, 2])
    assert (files(splits["val"]), splits["val"]["label"][:]) == (["004.png", "003.png"], [0, 2])


@pytest.mark.parametrize("stray", [1, 12])
def test_images_beside_class_folders_leave_all_unlabelled(tmp_path: Path, stray: int, recwarn: pytest.WarningsRecorder) -> None:
    write_folder(tmp_path / "cat", range(19))
    write_folder(tmp_path, range(100, 100 + stray))
    assert open_splits(str(tmp_path))["train"].column_names == ["image"]
    told = f"{tmp_path}: no labels, since of 20 images 1 lie in no class folder, such as 100.png"
    assert [str(each.message) for each in recwarn] == ([told] if stray == 1 else [])


@pytest.mark.parametrize(("train", "test"), [("Train", "VAL"), ("training", "testing"), ("TRAIN", "Validation")])
def test_split_folders_are_known_by_other_names_too(tmp_path: Path, train: str, test: str) -> None:
    write_folder(tmp_path / train / "cat", [0, 1])
    write_folder(tmp_path / test / "cat", [2])
    splits = open_splits(str(tmp_path))
    assert [*splits] == ["train", {"testing": "test"}.get(test, test.lower())]
    assert [len(table) for table in splits.values()] == [2, 1]


@pytest.mark.parametrize("classes", [("airplane", "bus", "train"), ("cat", "dog", "test")])
def test_a_class_is_not_taken_for_a_split(tmp_path: Path, classes: tuple[str, ...]) -> None:
    for name in classes:
        write_folder(tmp_path / name, [0, 1])
    first, second, split = classes
    with pytest.raises(
        HuvrError, match=rf": is {split} a split, or a class as {first}, {second}\? Name the folder of the split, "
    ):
        open_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("folders", "lengths"),
    [
        ({"": 5, "Training": 2}, {"train": 7}),  # no split by another name without a second one
        ({"": 5, "Test": 2}, {"train": 7}),
        ({"cat": 3, "dog": 2, "Training": 0}, {"train": 5}),
        ({"": 5, "training": 0}, {"train": 5}),
        ({"train/a": 3, "training": 0}, {"train": 3}),  # none that is empty
        ({"train/a": 3, "Val": 0}, {"train": 3}),
        ({"train/a": 3, "training/a": 2}, {"train": 3}),  # none where one has the very name
        ({"train/a": 3, "Testing/a": 2}, {"train": 3, "test": 2}),
    ],
)
def test_other_names_of_splits_are_read_with_care(tmp_path: Path, folders: dict[str, int], lengths: dict[str, int]) -> None:
    for number, (name, count) in enumerate(folders.items()):
        write_folder(tmp_path / name, range(10 * number, 10 * number + count))
    if len(folders) == 2 and lengths == {"train": 3} and folders.get("training/a"):
        with pytest.warns(UserWarning, match="the splits are train; passed over: training"):
            splits = open_splits(str(tmp_path))
    else:
        splits = open_splits(str(tmp_path))
    assert {split: len(table) for split, table in splits.items()} == lengths


def test_a_second_name_of_a_split_may_be_a_link(tmp_path: Path) -> None:
    write_folder(tmp_path / "Train" / "a", [0, 1])
    write_folder(tmp_path / "Val" / "a", [2])
    (tmp_path / "training").symlink_to("Train")
    assert {split: len(table) for split, table in open_splits(str(tmp_path)).items()} == {"train": 2, "val": 1}


def test_folders_beside_those_of_splits_are_named(tmp_path: Path) -> None:
    for name in ("train", "val", "masks", ".thumbnails"):
        write_folder(tmp_path / name, [0])
    (tmp_path / "notes").mkdir()
    with pytest.warns(UserWarning, match=r": the splits are train, val; passed over: masks$"):
        assert [*open_splits(str(tmp_path))] == ["train", "val"]


def test_two_folders_of_one_split_are_an_error(tmp_path: Path) -> None:
    for name in ("Train", "training", "val"):
        write_folder(tmp_path / name, [0])
    with pytest.raises(HuvrError, match="Train and training are both the split train: rename one"):
        open_splits(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "train-00000-of-00002.parquet",
        "train/part.parquet",
        "part.parquet",
        "trained.parquet",
        "imagenet1k-Train-00.parquet",
        "contest.parquet",
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_are_split_by_their_name_or_folder(tmp_path: Path, name: str, streaming: bool) -> None:
    write_pack(tmp_path / name, [5, 6])
    write_pack(tmp_path / "imagenet_testing_0.parquet", [7])
    splits = open_splits(str(tmp_path), streaming)
    assert {split: [row["label"] for row in table] for split, table in splits.items()} == {"train": [5, 6], "test": [7]}
    assert all(isinstance(table, IterableDataset) == streaming for table in splits.values())
    assert next(iter(splits["test"]))["image"] == {"bytes": flat_bytes(7), "path": "007.png"}


@pytest.mark.parametrize("pack", ["ILSVRC2012_img_val.tar", "archives/train.parquet"])
def test_a_pack_beside_split_folders_of_images_is_passed_over(tmp_path: Path, pack: str) -> None:
    write_folder(tmp_path / "train" / "cat", [0, 1])
    write_folder(tmp_path / "val" / "cat", [2])
    (tmp_path / pack).parent.mkdir(exist_ok=True)
    (tmp_path / pack).touch()
    splits = open_splits(str(tmp_path))
    assert {split: files(table) for split, table in splits.items()} == {"train": ["000.png", "001.png"], "val": ["002.png"]}


@pytest.mark.parametrize(("images", "pack"), [("", "x.tar"), ("cat", "x.parquet"), ("train/cat", "train/cat.tar")])
def test_packs_and_images_of_which_either_could_be_meant_are_an_error_that_names_both(
    tmp_path: Path, images: str, pack: str
) -> None:
    write_folder(tmp_path / images, [0])
    (tmp_path / pack).touch()
    with pytest.raises(HuvrError, match=rf": packs as well as images, {pack} and {(images + '/').lstrip('/')}000.png: name"):
        open_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "split"), [("pack.parquet", "train"), ("test-1.parquet", "test"), ("flowers-test.parquet", "train")]
)
def test_a_single_parquet_file_is_one_split(tmp_path: Path, name: str, split: str) -> None:
    splits = open_splits(str(write_pack(tmp_path / name, [7])))
    assert {name: table["label"][:] for name, table in splits.items()} == {split: [7]}


def test_a_pack_that_datasets_wrote_keeps_class_names_and_loses_other_columns(tmp_path: Path) -> None:
    features = Features({"img": Image(), "label": ClassLabel(names=["cat", "dog"]), "caption": Value("string")})
    rows = {"img": [{"bytes": flat_bytes(n), "path": None} for n in range(2)], "label": [1, 0], "caption": ["a", "b"]}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "x.parquet")
    table = open_splits(str(tmp_path / "x.parquet"))["train"]
    assert table.column_names == ["image", "label"]
    assert table.features["label"].names == ["cat", "dog"]
    assert table[0] == {"image": {"bytes": flat_bytes(0), "path": None}, "label": 1}


def test_arrow_as_save_to_disk_leaves_it(tmp_path: Path) -> None:
    def table(*pictures: int) -> Dataset:
        cells = [{"bytes": flat_bytes(number), "path": None} for number in pictures]
        return Dataset.from_dict({"image": cells}, Features({"image": Image()}))

    DatasetDict({"train": table(1, 2), "validation": table(3)}).save_to_disk(tmp_path / "set")
    splits = open_splits(str(tmp_path / "set"))
    assert {split: len(table) for split, table in splits.items()} == {"train": 2, "validation": 1}
    assert splits["validation"][0]["image"]["bytes"] == flat_bytes(3)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["my_test/train-0", "my_test/val-0"], ["train", "val"]),
        (["stress-test-train-0", "stress-test-val-0"], ["train", "val"]),
        (["test_set/a", "train_set/a"], ["test", "train"]),
        (["ab-test-0", "ab-test-1"], ["train", "train"]),
        (["train/shard-test-0", "val/shard-test-0"], ["train", "val"]),
    ],
)
def test_splits_of_packs_with_several_words(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    for number, name in enumerate(names):
        write_pack(tmp_path / f"{name}.parquet", [number])
    found = {label: split for split, table in open_splits(str(tmp_path)).items() for label in table["label"]}
    assert [found[number] for number in range(len(names))] == splits


def texts(file: Path, labels: list[str]) -> None:
    pq.write_table(pa.Table.from_pylist([{"image": {"bytes": b"", "path": ""}, "label": label} for label in labels]), file)


def test_names_of_classes_become_their_numbers(tmp_path: Path) -> None:
    texts(tmp_path / "train.parquet", ["dog", "cat", "dog", "cat"])
    texts(tmp_path / "val.parquet", ["cow", "cat"])
    splits = open_splits(str(tmp_path))
    assert splits["val"].features["label"].names == ["cat", "cow", "dog"]
    assert [table["label"][:] for table in splits.values()] == [[2, 0, 2, 0], [1, 0]]
    with pytest.warns(UserWarning, match="no labels, since those of a stream must be numbers"):
        assert open_splits(str(tmp_path), streaming=True)["val"].column_names == ["image"]


@pytest.mark.parametrize(
    ("labels", "why"),
    [(["a dog", "a cat", "a dog"], "hardly two rows have the same text"), (["a", "b", "a", None, "b"], "some rows have none")],
)
def test_texts_that_are_no_classes(tmp_path: Path, labels: list[str], why: str) -> None:
    texts(tmp_path / "train.parquet", labels)
    with pytest.warns(UserWarning, match=f"no labels, since {why} in the column label"):
        assert open_splits(str(tmp_path))["train"].column_names == ["image"]


@pytest.mark.parametrize("labels", [["cat", "dog"], [0.5, 1.0], [{"bytes": b"", "path": ""}] * 2], ids=["text", "float", "mask"])
def test_what_is_no_class_number_is_no_label(tmp_path: Path, labels: list[object]) -> None:
    table = pa.Table.from_pylist([{"image": {"bytes": b"", "path": ""}, "label": label} for label in labels])
    pq.write_table(table, tmp_path / "x.parquet")
    assert open_splits(str(tmp_path / "x.parquet"))["train"].column_names == ["image"]


def test_a_table_without_images_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "number": [1]}), tmp_path / "x.parquet")
    with pytest.raises(HuvrError, match=r"x\.parquet': no image column among text, number; expected one called image"):
        open_splits(str(tmp_path / "x.parquet"))


def test_a_broken_pack_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no Parquet")
    with pytest.raises(HuvrError, match=r"^data root '\S+x\.parquet': not readable as Parquet \([^\n]+\)$"):
        open_splits(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone/folder/deep", "no such file or folder; allowed: 'photos', a folder of images, a Parquet"),
        ("gone.parquet", "no such file; allowed: 'photos', a folder"),
        ("notes.txt", "not a data set; allowed: 'photos'"),
    ],
)
def test_what_is_no_source_is_an_error_that_says_what_is(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(HuvrError, match=message):
        open_splits(str(tmp_path / name))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HuvrError, match="no images in this folder"):
        open_splits(str(tmp_path))


def test_other_names_are_asked_for_at_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    table = Dataset.from_dict({"image": [{"bytes": flat_bytes(1), "path": None}]}, Features({"image": Image()}))
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, root, timeout: asked.append(root))
    monkeypatch.setattr(sources, "load_dataset", lambda root, streaming: asked.append((root, streaming)) or {"train": table})
    assert open_splits("someone/pictures", streaming=True)["train"][0]["image"]["bytes"] == flat_bytes(1)
    assert asked == ["someone/pictures", ("someone/pictures", True)]


def test_a_hub_that_does_not_answer_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    with pytest.raises(
        HuvrError, match=r"^data root 'imagenett': no such file or folder, and not to be had .*no route to host\)"
    ):
        open_splits("imagenett")


def test_packs_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    for split, names in {"train": ["cat", "dog"], "val": ["dog", "cat"]}.items():
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        rows = {"image": [{"bytes": flat_bytes(0), "path": None}], "label": [0]}
        Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(HuvrError, match="the splits train, val number their classes differently; write them alike"):
        open_splits(str(tmp_path))
