"""The confusion picture, and the counts it is drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from known_features import Known
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from huvr.errors import HuvrError
from huvr.tasks import accuracy as accuracies
from huvr.tasks.accuracy import Accuracy
from huvr.tasks.base import EncoderConfig
from huvr.tasks.confusion import NAMED_CLASSES, SIDE, picture
from huvr.tasks.knn import KNN

CPU = torch.device("cpu")


def test_counts_are_those_of_torchmetrics() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(500, 9), torch.randint(7, (500,))  # two classes without images
    ours = Accuracy(9, CPU)
    for piece in torch.arange(500).split(150):
        ours.add(scores[piece], labels[piece])
    assert ours.confusion is not None
    assert torch.equal(ours.confusion, MulticlassConfusionMatrix(9)(scores, labels))
    assert ours.top1 == pytest.approx(100 * MulticlassAccuracy(9, average="micro")(scores, labels).item())
    assert ours.top5 == pytest.approx(100 * MulticlassAccuracy(9, top_k=5, average="micro")(scores, labels).item())
    each = MulticlassAccuracy(9, average="none")(scores, labels)
    assert ours.mean_per_class == pytest.approx(100 * each[:7].mean().item(), rel=1e-5)
    assert ours.metrics().keys() == {"top1", "top5", "mean_per_class"}


def test_many_classes_are_not_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracies, "CONFUSED_CLASSES", 2)
    counts = Accuracy(3, CPU)
    counts.add(torch.eye(3), torch.tensor([0, 1, 1]))
    assert counts.confusion is None
    assert counts.metrics() == {"top1": pytest.approx(200 / 3), "mean_per_class": 75}


def test_one_class_is_refused() -> None:
    with pytest.raises(HuvrError, match="1 class: there is nothing to tell apart"):
        Accuracy(1, CPU)


def test_a_row_is_a_class_a_column_an_answer_and_the_colour_a_share() -> None:
    count = NAMED_CLASSES + 1  # too many for names
    confusion = torch.zeros(count, count, dtype=torch.long)
    confusion[3, 3], confusion[3, 7], confusion[5, 0] = 1, 1, 4  # class 0 has no images
    drawn = picture(confusion, [str(number) for number in range(count)])
    cell = SIDE // count
    assert drawn.shape == (3, cell * count, cell * count)
    colours = drawn[:, cell // 2 :: cell, cell // 2 :: cell]
    half, all_of_them = (220, 100, 85), (255, 255, 240)  # the middle and the end of huvr.viz.HEAT
    assert tuple(colours[:, 5, 0].tolist()) == all_of_them
    assert tuple(colours[:, 3, 3].tolist()) == tuple(colours[:, 3, 7].tolist()) == half
    assert colours.sum() == sum(all_of_them) + 2 * sum(half)


def test_names_stand_beside_their_rows_and_above_their_columns() -> None:
    drawn = picture(torch.eye(2, dtype=torch.long), ["i", "a rather long name"])
    cell = SIDE // 2
    margin = drawn.shape[1] - 2 * cell
    ink = (drawn < 128).any(0)
    beside, above = ink[margin:, :margin], ink[:margin, margin:]
    assert 0 < beside[:cell].sum() < beside[cell:].sum()  # the longer name is that of the second row …
    assert 0 < above[:, :cell].sum() < above[:, cell:].sum()  # … and of the second column
    assert above[margin // 2 :, :cell].any()  # names end where the map begins
    assert not above[: margin // 2, :cell].any()


def test_a_thousand_classes_are_a_pixel_each() -> None:
    assert picture(torch.eye(1000), [str(number) for number in range(1000)]).shape == (3, 1000, 1000)


def test_the_picture_goes_to_the_run_folder_and_to_tensorboard(encoder: str, quiet: Any, tmp_path: Path) -> None:
    features, labels = torch.eye(8)[:3].repeat(4, 1), torch.arange(12) % 3
    data = Known(encoder, (features, labels), (features, labels))
    task = KNN(EncoderConfig(encoder), k=(2, 1))
    (metrics,) = quiet(logger=TensorBoardLogger(tmp_path, name="", version="")).test(task, datamodule=data, verbose=False)
    assert metrics == dict.fromkeys(("top1_k2", "mean_per_class_k2", "top1_k1", "mean_per_class_k1"), 100)
    assert task.details["top1_per_class"] == {"0": 100, "1": 100, "2": 100}
    with Image.open(tmp_path / "confusion.png") as image:
        size = image.size
    events = EventAccumulator(str(tmp_path)).Reload()
    (logged,) = events.Images("confusion")
    assert (logged.width, logged.height) == size
