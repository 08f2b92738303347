"""Features of labelled images: what the network says of them, computed once, and again when anything has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

import huvr
from huvr.errors import HuvrError
from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.features import Features
from huvr.tasks.knn import KNN
from huvr.tasks.retrieval import Retrieval


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "converted")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the sizes of the batches of images that encoders look at."""
    seen: list[int] = []
    look = FrozenEncoder.look

    def counted(self: FrozenEncoder, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return look(self, images)

    monkeypatch.setattr(FrozenEncoder, "look", counted)
    return seen


def opened(quiet: Any, encoder: str, tokens: str = "standard", **options: Any) -> tuple[Features, KNN]:
    options = {"root": "pictures", "resize": 34, "crop": 32, "workers": 0, "batch_size": 5} | options
    data, task = Features(**options), KNN(EncoderConfig(encoder, tokens), k=(3,))
    quiet().test(task, datamodule=data, verbose=False)
    return data, task


def everything(split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = zip(*split.pieces(4), strict=True)
    return torch.cat(features), torch.cat(labels)


def by_hand(encoder: str, split: str) -> torch.Tensor:
    """Standard cls tokens of the pictures in order, each read and looked at alone."""
    model, rows = huvr.load(encoder), []
    for path in sorted(Path("pictures", split).rglob("*.png")):
        image = Image.open(path).resize((44, 34), Image.Resampling.BICUBIC).crop((6, 1, 38, 33))  # 40x52 to 34x44
        with torch.no_grad():
            rows.append(model.encode(pil_to_tensor(image)[None] / 255).cls)
    return torch.cat(rows)


def test_features_are_what_the_network_says_of_the_middle_of_each_image(quiet: Any, encoder: str, pictures: Path) -> None:
    data, task = opened(quiet, encoder)
    for split, name, count in ((data.train, "train", 6), (data.test, "val", 2)):
        features, labels = everything(split)
        assert labels.tolist() == [label for label in range(3) for _ in range(count)]
        assert F.cosine_similarity(features, by_hand(encoder, name)).min() > 0.9999
    assert data.train.classes == ["blue", "green", "red"]
    assert task.details["data"] == {"train": "pictures (train), 18 images", "test": "pictures (val), 6 images"}
    assert task.details["bytes_per_image"] == 2 * 48 * 17


def test_pca_is_fitted_on_the_training_split_and_needs_no_second_look(
    quiet: Any, encoder: str, pictures: Path, looks: list[int]
) -> None:
    standard, _ = opened(quiet, encoder)
    looks.clear()
    data, task = opened(quiet, encoder, "pca2")
    assert looks == [1]  # one blank image, to count its patches
    train, test = (everything(split)[0].double() for split in (standard.train, standard.test))
    directions = torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:2]
    expected, found = (test - train.mean(0)) @ directions.T, everything(data.test)[0].double()
    torch.testing.assert_close(found, expected * (found * expected).sum(0).sign(), rtol=2e-3, atol=2e-3)
    assert task.details["bytes_per_image"] == 2 * 2 * 17


def test_features_are_computed_once(quiet: Any, encoder: str, pictures: Path, looks: list[int]) -> None:
    first, _ = opened(quiet, encoder)
    assert sum(looks) == 18 + 6 + 1
    looks.clear()
    second, _ = opened(quiet, encoder)
    assert looks == [1]
    torch.testing.assert_close(everything(first.train), everything(second.train), rtol=0, atol=0)


def test_only_what_has_changed_is_computed_again(quiet: Any, encoder: str, pictures: Path, looks: list[int]) -> None:
    opened(quiet, encoder)

    def computed(**options: Any) -> int:
        looks.clear()
        opened(quiet, encoder, **options)
        return sum(looks) - 1

    assert computed(crop=24) == 24
    assert computed(tokens="tintok") == 24
    assert computed(train_images=9) == 9
    status = os.stat("pictures/val/red/1.png")
    os.utime("pictures/val/red/1.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert computed() == 6
    for file in Path("runs/features").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-9])
    assert computed() == 24
    assert computed() == 0


def test_an_image_that_cannot_be_read_is_left_out_and_named(quiet: Any, encoder: str, pictures: Path) -> None:
    Path("pictures/train/green/3.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"image skipped, 1 so far: pictures/train/green/3.png: not a readable image"):
        data, _ = opened(quiet, encoder)
    features, labels = everything(data.train)
    assert labels.tolist() == [0] * 6 + [1] * 5 + [2] * 6
    assert F.cosine_similarity(features, by_hand_without(encoder, "pictures/train/green/3.png")).min() > 0.9999


def by_hand_without(encoder: str, path: str) -> torch.Tensor:
    os.remove(path)
    return by_hand(encoder, "train")


def pack(split: str, labels: list[int | None]) -> None:
    """A Parquet file of that split."""
    paths = sorted(map(str, Path("pictures/train").rglob("*.png")))[: len(labels)]
    table = datasets.Dataset.from_dict({"image": [{"bytes": Path(path).read_bytes(), "path": path} for path in paths]})
    Path("pack").mkdir(exist_ok=True)
    table.add_column("label", labels).cast_column("image", datasets.Image()).to_parquet(f"pack/{split}.parquet")


def test_a_pack_changed_in_place_is_read_anew(quiet: Any, encoder: str, pictures: Path, looks: list[int]) -> None:
    pack("train", [0, 1, 2, 3])
    pack("test", [0, 1])
    opened(quiet, encoder, root="pack")
    looks.clear()
    pack("test", [1, 0])
    os.utime("pack/test.parquet", ns=(0, 0))
    data, _ = opened(quiet, encoder, root="pack")
    assert sum(looks) - 1 == 6  # datasets knows the pack by all of its files
    assert everything(data.test)[1].tolist() == [1, 0]
    assert data.train.classes == ["0", "1", "2", "3"]


def test_data_that_cannot_be_used_are_refused(quiet: Any, encoder: str, pictures: Path) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(HuvrError) as error:
            opened(quiet, encoder, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert refusal(crop=64) == "resize 34, crop 64: expected 1 <= crop <= resize"
    assert "expected 1 or more" in refusal(train_images=0)
    assert refusal(root="pictures/train") == (
        "data root 'pictures/train': no held-out split (validation, val, valid, dev, test); it has train"
    )
    assert refusal(test_split="test") == "data root 'pictures': no split 'test'; it has train, val"
    assert "train_split and test_split are both 'train'" in refusal(test_split="train")
    assert refusal(root="pictures/val/red", test_split="train", train_split="train").startswith("train_split and test_split")
    for name in ("one", "two"):
        Path(f"bare/{name}").mkdir(parents=True)
    for split in ("train", "val"):
        Path(f"flat/{split}").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(f"flat/{split}/0.png")
    assert refusal(root="flat").startswith("flat (train): no labels; expected class subfolders")
    pack("train", [0, 1, 2])
    pack("test", [0, 5])
    assert refusal(root="pack") == "pack (test): classes that pack (train) lacks: 5"
    pack("test", [0, -1])
    assert refusal(root="pack") == "pack (test): 1 images without a label, the first being row 1"


def test_classes_without_images_to_be_measured_on_are_told_of(quiet: Any, encoder: str, pictures: Path) -> None:
    for file in Path("pictures/val/red").glob("*.png"):
        file.unlink()
    with pytest.warns(UserWarning, match=r"pictures \(val\): no images of 1 of the 3 classes that pictures \(train\) has"):
        data, _ = opened(quiet, encoder)
    assert (data.train.classes, len(data.test)) == (["blue", "green", "red"], 4)


def test_pictures_that_a_pack_only_names_are_looked_at_again_when_they_change(
    quiet: Any, encoder: str, pictures: Path, looks: list[int]
) -> None:
    Path("pack").mkdir()
    for split in ("train", "val"):
        paths = sorted(map(str, Path("pictures", split).rglob("*.png")))
        table = datasets.Dataset.from_dict({"image": paths, "label": [number % 3 for number in range(len(paths))]})
        table.to_parquet(f"pack/{split}.parquet")
    opened(quiet, encoder, root="pack")
    looks.clear()
    opened(quiet, encoder, root="pack")
    assert sum(looks) - 1 == 0
    os.utime("pictures/val/red/1.png", ns=(0, 0))
    opened(quiet, encoder, root="pack")
    assert sum(looks) - 2 == 6
    Path("pictures/val/red/1.png").unlink()
    with pytest.warns(UserWarning, match=r"image skipped, 1 so far: pictures/val/red/1.png: no such file"):
        opened(quiet, encoder, root="pack")


def test_a_task_that_learns_nothing_asks_for_no_training_split(
    quiet: Any, encoder: str, pictures: Path, looks: list[int]
) -> None:
    for name in ("red", "green"):
        Path("pictures/val", name).rename(Path("pictures/val", f"new{name}"))  # classes that training never saw, as in SOP
    Path("pictures/train").rename("seen")
    task = Retrieval(EncoderConfig(encoder), k=(1,), leave_one_out=True)
    (metrics,) = quiet().test(task, Features("pictures", resize=34, crop=32, workers=0), verbose=False)
    assert metrics["recall@1"] == 100
    assert task.details["data"] == {"test": "pictures (val), 6 images"}
    assert sum(looks) - 1 == 6
    Path("seen").rename("pictures/train")
    with pytest.raises(HuvrError, match=r"classes that pictures \(train\) lacks: newgreen, newred"):
        opened(quiet, encoder)
