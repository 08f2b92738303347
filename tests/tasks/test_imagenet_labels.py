"""ReaL and ObjectNet, on made-up files of the forms that they were released in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from known_features import COLOURS
from PIL import Image

from huvr.cli import main
from huvr.data.samples import Rows
from huvr.errors import HuvrError
from huvr.tasks.imagenet_labels import objectnet, real_answers, without_border

NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (2, 1, 4)]


def rows_of(names: list[str | None]) -> Rows:
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    cells = [{"bytes": b"x", "path": name} for name in names]
    table = datasets.Dataset.from_dict({"image": cells, "label": [0] * len(names)}, features)
    return Rows(table, np.arange(len(names)), "pack")


def test_real_labels_go_by_the_name_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[[0], [1, 2], [], []]")
    file = str(tmp_path / "real.json")
    assert real_answers(file, rows_of(NAMES), 3) == [[1, 2], [0], []]
    rows = rows_of([f"val/n01751748/{name}" for name in NAMES])
    rows.numbers = np.array([2, 0])
    assert real_answers(file, rows, 3) == [[], [1, 2]]


def test_timm_ships_the_real_labels() -> None:
    """One list of ImageNet numbers per validation image; 3,163 of them are empty."""
    every = rows_of([f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)])
    answers = real_answers("timm", every, 1000)
    assert sum(not each for each in answers) == 50_000 - 46_837


@pytest.mark.parametrize(
    ("content", "names", "complaint"),
    [
        ("{}", NAMES, "expected a list of lists"),
        ("[1, 2]", NAMES, "expected a list of lists"),
        ("nonsense", NAMES, "not a readable JSON file"),
        ("[[0], [1], [7], [0]]", NAMES, "label 7; the training split has classes 0 to 2"),
        ("[[0], [true], [null], [0]]", NAMES, "label None"),
        ("[[0], [1], [1]]", NAMES, "pack: ILSVRC2012_val_00000004.JPEG is none of the 3 images"),
        ("[[0]]", ["cat.jpg"], "pack: cat.jpg is none of the 1 images"),
        ("[[0]]", [None], "pack: None is none of the 1 images"),
    ],
)
def test_other_forms_of_real_json_are_refused(content: str, names: list[str | None], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(HuvrError, match=complaint):
        real_answers(str(tmp_path / "real.json"), rows_of(names), 3)


@pytest.fixture
def release(tmp_path: Path, pictures: Path) -> Path:
    """ObjectNet of three classes: one is ImageNet's 0 and 2, one is its 1, one is unknown to it. A red border as there."""
    folder = tmp_path / "objectnet-1.0"
    for name, colour in (("a_bike", "blue"), ("tie", "green"), ("unknown", "red")):
        (folder / "images" / name).mkdir(parents=True)
        paper = Image.new("RGB", (44, 44), (255, 0, 0))
        paper.paste(COLOURS[colour], (2, 2, 42, 42))
        paper.save(folder / "images" / name / "0001.png")
    contents = {
        "folder_to_objectnet_label.json": {"a_bike": "A bike (old)", "tie": "Tie", "unknown": "Unknown"},
        "objectnet_to_imagenet_1k.json": {"A bike (old)": "bicycle, bike; tandem", "Tie": "bow tie"},
        "pytorch_to_imagenet_2012_id.json": {"0": 2, "1": 0, "2": 1},  # ImageNet's number: line of the next file
    }
    (folder / "mappings").mkdir()
    for name, content in contents.items():
        (folder / "mappings" / name).write_text(json.dumps(content))
    (folder / "mappings" / "imagenet_to_label_2012_v2").write_text("bow tie\ntandem\nbicycle, bike\n")
    return folder


def test_objectnet_by_its_mappings(release: Path) -> None:
    rows, answers = objectnet(str(release), 3)
    assert [Path(rows.readable(index).row["image"]["path"]).parent.name for index in range(len(rows))] == ["a_bike", "tie"]
    assert answers == [[0, 2], [1]]


def test_the_border_is_cut_off(release: Path) -> None:
    with Image.open(release / "images" / "tie" / "0001.png") as image:
        inner = without_border(image)
    assert inner.size == (40, 40)
    assert inner.getcolors() == [(1600, COLOURS["green"])]


def test_other_forms_of_objectnet_are_refused(release: Path) -> None:
    mappings = release / "mappings"

    def refused(name: str, content: str | None, complaint: str) -> None:
        kept = (mappings / name).read_text()
        if content is None:
            (mappings / name).unlink()
        else:
            (mappings / name).write_text(content)
        with pytest.raises(HuvrError, match=complaint):
            objectnet(str(release), 3)
        (mappings / name).write_text(kept)

    refused("folder_to_objectnet_label.json", None, "folder_to_objectnet_label.json: not a readable JSON file")
    refused("folder_to_objectnet_label.json", '{"tie": 3}', "expected an object of texts")
    refused("folder_to_objectnet_label.json", '{"hat": "Tie"}', "none of the class folders")
    refused("imagenet_to_label_2012_v2", None, "not a readable text file")
    refused("imagenet_to_label_2012_v2", "bow tie\ntandem\n", "do not belong together .IndexError")
    refused("imagenet_to_label_2012_v2", "bow tie\ntandem\nbike\n", "do not belong together .KeyError: 'bicycle, bike'")
    refused("pytorch_to_imagenet_2012_id.json", "[1]", "do not belong together .AttributeError")
    refused("pytorch_to_imagenet_2012_id.json", '{"0": 2, "1": 0, "5": 1}', "label 5; the training split has classes 0 to 2")
    objectnet(str(release), 3)
    with pytest.raises(HuvrError, match=r"nowhere/mappings/folder_to_objectnet_label.json: not a readable JSON"):
        objectnet("nowhere", 3)
    shutil.rmtree(release / "images")
    with pytest.raises(HuvrError, match="images"):
        objectnet(str(release), 3)


def test_a_probe_measures_both(encoder: str, pictures: Path, release: Path) -> None:
    """Classes: blue 0, green 1, red 2. Every image is classified rightly, so what is logged is what the labels say."""
    for number, image in enumerate(sorted(pictures.glob("val/*/*.png")), start=1):
        image.rename(image.with_name(f"ILSVRC2012_val_{number:08d}.png"))
    Path("real.json").write_text("[[0], [1, 0], [], [0], [2, 1], [1]]")  # right, right, skipped, wrong, right, wrong
    (release / "mappings" / "objectnet_to_imagenet_1k.json").write_text('{"A bike (old)": "bicycle, bike", "Tie": "tandem"}')
    small = ["--data.root", "pictures", "--data.resize=34", "--data.crop=32", "--data.workers=0", "--data.batch_size=6"]
    labels = ["--data.real", "real.json", "--data.objectnet", str(release), "--model.rates", "[5]", "--run", "there"]
    assert main(["probe", "--task", "imagenet", "--encoder", encoder, *small, *labels]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert record["metrics"] == {"top1": 100, "mean_per_class": 100, "real": 60, "objectnet": 50}
    assert record["data"]["objectnet"] == f"{release}/images, 2 images"
