"""The embedded photographs."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from known_images import write_folder
from PIL import Image

from huvr.data import Images, photos
from huvr.data.sources import open_splits
from huvr.errors import HuvrError


def test_train_and_held_out_are_different_photographs_large_enough_to_crop() -> None:
    sides = [photos.paths()[split] for split in ("train", "validation")]
    digests = [{hashlib.sha256(path.read_bytes()).digest() for path in side} for side in sides]
    assert [len(side) for side in digests] == [12, 2]
    assert not digests[0] & digests[1]
    for path in [*sides[0], *sides[1]]:
        with Image.open(path) as image:
            assert min(image.size) >= 256


def test_the_names_of_both_sides_are_printed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        Images("photos", workers=0).setup()
    told = [record.message for record in caplog.records if record.message.startswith("photos:")]
    assert len(told) == 1
    train, held_out = told[0].split("; held out: ")
    assert "astronaut.png" in train
    assert held_out == "chelsea.png, rocket.jpg"
    assert all(path.name in train for path in photos.paths()["train"])


def test_a_folder_of_that_name_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", [3])
    with pytest.warns(UserWarning, match=r"the data set of that name, not the folder here, which is \./photos"):
        assert len(open_splits("photos")["train"]) == 12
    assert len(open_splits("./photos")["train"]) == 1


def test_by_default_an_epoch_is_2048_crops_and_all_held_out_photographs_are_seen() -> None:
    data = Images("photos", size=32, batch_size=16, workers=0)
    data.setup()
    assert len(data.train_dataloader()) == 128
    (batch,) = data.val_dataloader()
    assert batch["image"].shape == (2, 3, 32, 32)
    assert next(iter(data.train_dataloader()))["image"].shape == (16, 3, 32, 32)


def test_a_photograph_is_decoded_once_for_all_its_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(str(file)) or real(file))
    data = Images("photos", size=16, batch_size=12, epoch_size=48, workers=0)
    data.setup()
    assert len(list(data.train_dataloader())) == 4
    assert len(opened) == len(set(opened)) == 13  # setup has looked at one of those held out


def test_a_scikit_image_without_them_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(photos, "files", lambda _: tmp_path)
    with pytest.raises(HuvrError, match=r"lacks astronaut\.png, .*reinstall it or choose another data root"):
        photos.paths()
