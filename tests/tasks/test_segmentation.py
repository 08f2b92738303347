"""Segmentation: scores against a plain computation, windows, views that keep image and mask together, and whole probes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchvision import tv_tensors

from huvr.cli import main
from huvr.errors import HuvrError
from huvr.tasks import overlays, segmentation
from huvr.tasks.base import EncoderConfig
from huvr.tasks.labels import NO_LABEL, Labels
from huvr.tasks.segmentation import Segmentation, scores
from huvr.tasks.segmentation_views import GREY, MixedCrop, TrainView, distortion
from huvr.tasks.sliding import at_pixels, slide, starts

COLOURS = np.array([(20, 20, 220), (20, 220, 20), (220, 20, 20)])
VOID = 9
CONFIGS = Path(__file__).parents[2] / "configs" / "probe"


# ---- scores


def test_scores_of_a_case_by_hand() -> None:
    # 10 pixels of class 0, 7 right; 4 of class 1, all right; none of class 2, but 3 answers; class 3 nowhere
    confusion = torch.tensor([[7, 0, 3, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    miou, accuracy, per_class = scores(confusion)
    assert per_class[:3].tolist() == [70, 100, 0]
    assert per_class[3].isnan()
    assert float(miou) == pytest.approx(170 / 3)
    assert float(accuracy) == pytest.approx(100 * 11 / 14)


def test_scores_are_of_sums_over_all_images(encoder: str) -> None:
    generator = np.random.default_rng(0)
    task = Segmentation(EncoderConfig(encoder), classes=4)
    inter, union = np.zeros(4), np.zeros(4)
    for height in (5, 9, 30):
        truth, found = (generator.integers(low, 4, (1, height, 7)) for low in (NO_LABEL, 0))
        task.confusion.update(torch.from_numpy(found), torch.from_numpy(truth))
        for label in range(4):
            there, said = truth == label, (found == label) & (truth != NO_LABEL)
            inter[label] += (there & said).sum()
            union[label] += (there | said).sum()
    miou, _, per_class = scores(task.confusion.compute())
    np.testing.assert_allclose(per_class, 100 * inter / union)
    assert float(miou) == pytest.approx(100 * (inter / union).mean())


def test_a_batch_without_labels_teaches_nothing(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Segmentation(EncoderConfig(encoder), classes=2)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    void = torch.full((2, 16, 16), NO_LABEL)
    assert task.training_step({"image": images, "target": void}, 0) == 0
    one = void.index_fill(1, torch.tensor([3]), 1)
    logits = task.eval()(images / 255)
    expected = -logits.log_softmax(1)[:, 1, 3].mean()
    torch.testing.assert_close(task.training_step({"image": images, "target": one}, 0), expected)


def test_dropout_follows_from_the_place_in_the_training(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a resumed run drops what it would have."""
    task = Segmentation(EncoderConfig(encoder), classes=2).train()
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    nn.init.normal_(task.head[-1].weight)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "target": torch.ones(2, 16, 16).long(),
    }
    losses = []
    for seed, index in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(seed)
        losses.append(task.training_step(batch, index))
    assert losses[0] == losses[1] != losses[2]


# ---- labels


def test_zero_is_a_class_or_none() -> None:
    stored = torch.tensor([[0, 1, 3, 255]])
    assert Labels(4, 255, False)(stored, "x").tolist() == [[0, 1, 3, -1]]
    assert Labels(3, 255, True)(stored, "x").tolist() == [[-1, 0, 2, -1]]


@pytest.mark.parametrize("zero_ignored", [False, True])
def test_a_number_that_is_no_class_is_named(zero_ignored: bool) -> None:
    allowed = "1 to 3, and 0 and 255" if zero_ignored else "0 to 2, and 255"
    with pytest.raises(HuvrError, match=rf"^x.png: a mask with the value 7; expected {allowed} for pixels that do not count"):
        Labels(3, 255, zero_ignored)(torch.tensor([[1, 7, 255]]), "x.png")
    with pytest.raises(HuvrError, match=r"^x.png: a mask with floats; expected"):
        Labels(3, 255, zero_ignored)(torch.tensor([[1.0]]), "x.png")


# ---- windows


@pytest.mark.parametrize(
    ("side", "window", "stride"), [(683, 512, 341), (512, 512, 341), (512, 200, 133), (30, 64, 43), (7, 3, 2)]
)
def test_windows_cover_a_side_and_stay_inside(side: int, window: int, stride: int) -> None:
    begin = starts(side, window, stride)
    covered = {pixel for start in begin for pixel in range(start, min(start + window, side))}
    assert covered == {*range(side)}
    assert begin == sorted({*begin})
    assert begin[-1] == max(0, side - window)
    assert all(later - earlier <= stride for earlier, later in pairwise(begin))


def test_one_window_is_the_plain_forward() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1)
    images = torch.rand(2, 3, 20, 30)
    assert torch.equal(slide(images, 32, 21, layer), layer(images))


def test_overlapping_windows_are_averaged() -> None:
    images = torch.rand(1, 3, 11, 8)

    def mean(window: Tensor) -> Tensor:
        return window.mean((1, 2, 3), keepdim=True).expand(-1, 2, *window.shape[-2:])

    total, times = np.zeros((11, 8)), np.zeros((11, 8))
    for top in (0, 4, 5):  # every 4 pixels, the last one moved back
        for left in (0, 2):
            total[top : top + 6, left : left + 6] += images[0, :, top : top + 6, left : left + 6].mean().item()
            times[top : top + 6, left : left + 6] += 1
    found = slide(images, 6, 4, mean)
    np.testing.assert_allclose(found[0, 1].numpy(), total / times, rtol=1e-5)


def test_patches_over_the_edge_are_cut_off() -> None:
    # each patch holds the x of its middle, so between the middles of the outer patches a pixel has its own x
    maps = ((torch.arange(4) + 0.5) * 8).expand(1, 1, 3, 4)
    pixels = at_pixels(maps, (20, 29), (8, 8))
    assert pixels.shape == (1, 1, 20, 29)
    torch.testing.assert_close(pixels[0, 0, :, 4:28], (torch.arange(4, 28) + 0.5).expand(20, -1))


def test_patches_that_begin_before_the_image_and_end_in_it() -> None:
    """As of TransINR: a pixel of black around 20 pixels, and patches of 8, of which the last 5 pixels fill none."""
    maps = ((torch.arange(2) + 0.5) * 8 - 1).expand(1, 1, 2, 2)  # the x of their middles, 3 and 11
    pixels = at_pixels(maps, (20, 20), (8, 8), 1)[0, 0]
    torch.testing.assert_close(pixels[:, 3:11], (torch.arange(3, 11) + 0.5).expand(20, -1))
    assert (pixels[:, 11:] == 11).all()


# ---- views


def painted(height: int, width: int, block: int, classes: int = 5) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Blocks of random classes, each class in its colour."""
    generator = np.random.default_rng(height)
    labels = generator.integers(0, classes, (-(-height // block), -(-width // block))).repeat(block, 0).repeat(block, 1)
    labels = torch.from_numpy(labels[:height, :width])
    colours = torch.from_numpy(generator.integers(40, 216, (classes, 3)))
    return tv_tensors.Image(colours[labels].permute(2, 0, 1).to(torch.uint8)), tv_tensors.Mask(labels)


def purity(image: Tensor, labels: Tensor) -> float:
    """Share of the labelled pixels that have the commonest colour of their class."""
    right = 0
    for label in labels[labels >= 0].unique():
        right += int(image[:, labels == label].unique(dim=1, return_counts=True)[1].max())
    return right / int((labels >= 0).sum())


def test_images_and_masks_stay_together() -> None:
    for number in range(12):
        torch.manual_seed(number)
        image, labels = TrainView(64, (1, 1), 48)(*painted(64, 90, 5))
        assert image.shape == (3, 48, 48)
        assert image.dtype == torch.uint8
        assert purity(image, labels) == 1  # unscaled: each class has a single colour, whatever the distortion made of it
        image, labels = TrainView(64, (0.5, 2), 48)(*painted(64, 90, 16))
        assert image.shape[1:] == labels.shape == (48, 48)
        assert labels.dtype == torch.int64
        assert purity(image, labels) > 0.6  # enlarged, edges between classes have mixed colours


def test_small_images_are_padded_below_and_to_the_right() -> None:
    image, labels = TrainView(20, (1, 1), 32, max_share=1)(*painted(20, 26, 4))
    assert (labels[:20, :26] >= 0).all()
    assert (labels[20:] == NO_LABEL).all()
    assert (labels[:, 26:] == NO_LABEL).all()
    assert image[:, 31, 31].tolist() == list(GREY)


def test_scales_are_those_of_the_shorter_side() -> None:
    assert TrainView().transforms[0].min_size == list(range(256, 1024))


def test_crops_of_mostly_one_class_are_drawn_again() -> None:
    labels = torch.zeros(128, 128, dtype=torch.int64)
    labels[:, 96:] = 1  # a random crop of 32 pixels has 25 to 75 % of it once in six times
    labels[:16] = NO_LABEL

    def mixed(max_share: float) -> int:
        torch.manual_seed(0)
        crops = (MixedCrop(32, max_share)(tv_tensors.Mask(labels)) for _ in range(60))
        return sum(bool(0.25 < crop[crop >= 0].float().mean() < 0.75) for crop in crops)

    assert mixed(1.0) < 40  # two classes suffice
    assert mixed(0.75) > 45


def test_distortion_leaves_masks_and_sometimes_images_alone() -> None:
    image, labels = painted(16, 16, 4)
    seen = []
    for number in range(60):
        torch.manual_seed(number)
        distorted, same = distortion()(image, labels)
        assert torch.equal(same, labels)
        assert distorted.dtype == torch.uint8
        seen.append(torch.equal(distorted, image))
    assert 0 < sum(seen) < 15  # (1/2)^4 of them


# ---- pictures


def test_colours_are_those_of_pascal_voc_without_black() -> None:
    assert overlays.colours(4).tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert len(overlays.colours(150).unique(dim=0)) == 150


def test_pictures_show_image_truth_and_prediction() -> None:
    image = torch.full((3, 8, 10), 100, dtype=torch.uint8)
    truth, prediction = torch.full((16, 20), NO_LABEL), torch.zeros(16, 20, dtype=torch.int64)
    row = overlays.row(image, truth, prediction)
    assert row.shape == (3, 256, 3 * 320 + 2 * 4)
    assert row[:, 5, [5, 330, 660]].T.tolist() == [[100] * 3, [100] * 3, [117, 40, 40]]  # 0.4 * 100 + 0.6 * 128
    assert overlays.stacked([row, row]).shape == (3, 2 * 256 + 4, 968)


# ---- whole probes


def write(split: str, labels: list[int], truth: Any = lambda label: label, pattern: str = "{split}/{kind}") -> None:
    """Images of one colour each, whose masks also have pixels that do not count."""
    generator = np.random.default_rng(len(labels))
    folders = [Path("pairs", pattern.format(split=split, kind=kind)) for kind in ("images", "mask")]
    for number, label in enumerate(labels):
        image = (COLOURS[label] + generator.integers(-20, 21, (40, 52, 3))).astype(np.uint8)
        mask = np.full((40, 52), truth(label), np.uint8)
        mask[:5] = VOID
        for folder, pixels in zip(folders, (image, mask), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("train", [0, 1, 2] * 3)
    write("val", [2, 0, 1, 0])


def probe(encoder: str, *options: str, task: str = "segmentation") -> int:
    small = [
        "--data.workers",
        "0",
        "--data.train_view.short_side",
        "36",
        "--data.train_view.crop",
        "32",
        "--data.batch_size",
        "4",
    ]
    windows = ["--model.window", "32", "--model.stride", "21", "--data.test_view.size", "40", "--trainer.accelerator", "cpu"]
    rest = ["--model.encoder.source", encoder, "--data.root", "pairs", "--run", "there", "--trainer.enable_progress_bar", "false"]
    return main(["probe", "--task", task, *small, *windows, *rest, *options])


def steps(number: int) -> list[str]:
    return ["--trainer.max_steps", str(number), "--trainer.val_check_interval", str(number), "--model.warmup", "2"]


OWN = ["--model.classes", "[blue, green, red]", "--model.ignore", str(VOID)]


def test_tokens_that_hold_the_label_are_told_apart(encoder: str, pairs: None) -> None:
    assert probe(encoder, *OWN, *steps(40), "--model.lr", "0.02") == 0
    record = json.loads(Path("there/record.json").read_text())
    assert record["metrics"] == {"miou": 100, "pixel_accuracy": 100}
    assert record["iou_per_class"] == {"blue": 100, "green": 100, "red": 100}
    # 40x52 pixels are 2x2 windows of 32x32, each of 4x4 patches and a global token, 48 numbers in fp16
    assert record["bytes_per_image"] == 4 * 17 * 48 * 2
    assert record["data"] == {"train": "pairs (train), 9 images", "test": "pairs (val), 4 images"}
    with Image.open("there/segmentation.png") as picture:
        assert picture.size == (968, 4 * 246 + 3 * 4)
    events = EventAccumulator("there").Reload()
    assert events.Tags()["images"] == ["segmentation"]
    tensors = torch.load("there/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in tensors} == {"head"}


def test_labels_at_random_stay_near_chance(encoder: str, pairs: None) -> None:
    random = np.random.default_rng(0)
    write("train", [0] * 12, lambda _: random.integers(0, 3, (40, 52)))
    write("val", [0] * 4, lambda _: random.integers(0, 3, (40, 52)))
    assert probe(encoder, *OWN, *steps(15)) == 0
    metrics = json.loads(Path("there/record.json").read_text())["metrics"]
    assert 30 < metrics["pixel_accuracy"] < 37
    assert 10 < metrics["miou"] < 22  # a third over three classes, up to what mixed answers give


def test_ade20k_ignores_zero_and_goes_on_where_it_stopped(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, labels in (("training", [0, 1, 2, 0]), ("validation", [1, 2])):
        write(split, labels, lambda label: np.where(np.arange(52) < 20, 0, label + 1), "{kind}/{split}")
    Path("pairs/mask").rename("pairs/annotations")
    ade20k = ["--model.ignore", str(VOID)]
    assert probe(encoder, *ade20k, *steps(3), task="ade20k") == 0
    record = json.loads(Path("there/record.json").read_text())
    assert len(record["iou_per_class"]) == 150
    assert record["iou_per_class"]["0"] in (0, None)  # images of class 0 are in the training split only
    assert record["iou_per_class"]["149"] is None
    assert torch.load("there/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    changed = ["--model.lr", "0.5", "--model.weight_decay", "0.25", "--ckpt_path", "auto"]
    assert probe(encoder, *ade20k, *steps(5), *changed, task="ade20k") == 0
    content = torch.load("there/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 5
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["weight_decay"], group["lr"]) == (0.5, 0.25, 0)  # the end of the cosine


def test_options_that_cannot_be_are_refused(encoder: str) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(HuvrError) as error:
            Segmentation(EncoderConfig(encoder), **{"classes": 3} | options)
        return str(error.value)

    assert refusal(window=7) == "window 7, stride 341: expected a window of 8 pixels (a patch) or more, 1 <= stride <= window"
    assert refusal(window=32, stride=33).endswith("1 <= stride <= window")
    assert refusal(classes=1).startswith("classes 1: expected two or more")
    assert refusal(classes=["a", "b", "a"]).endswith("expected two or more, each name once")
    assert refusal(zero_label="gone") == "zero_label 'gone': choose one of kept, ignored"
    assert refusal(lr=0).startswith("lr 0, weight_decay 0.001, warmup 1500: expected a positive lr")
    with pytest.raises(HuvrError, match=r"^train_view: short_side 36, scales \(0.5, 2.0\), crop 512, max_share 0: expected"):
        TrainView(36, max_share=0)


def test_mistakes_in_the_data_are_one_line(encoder: str, pairs: None, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(*options: str) -> str:
        capsys.readouterr()
        assert probe(encoder, *OWN, *steps(2), *options) == 2
        return capsys.readouterr().err.splitlines()[-1].removeprefix("huvr: error: ")

    endless = "training without an end has no schedule: give the trainer max_epochs or max_steps"
    assert error_of("--trainer.max_steps", "-1") == endless
    assert error_of("--data.test_split", "test") == "data root 'pairs': no split 'test'; it has train, val"
    assert error_of("--model.ignore", "255") == (
        "pairs/val/images/0.png: a mask with the value 9; expected 0 to 2, and 255 for pixels that do not count "
        "(see model.classes, ignore and zero_label)"
    )
    Image.new("L", (3, 3)).save("pairs/val/mask/1.png")
    assert error_of() == "pairs/val/images/1.png: the image has 40x52 pixels, its target 3x3; expected the same"
    assert not Path("there/record.json").exists()


# ---- protocols


def test_ade20k_is_the_linear_protocol_of_dinov3() -> None:
    config: Any = yaml.safe_load((CONFIGS / "ade20k.yaml").read_text())
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert model == {
        "classes": 150, "ignore": 255, "zero_label": "ignored", "window": 512, "stride": 341, "lr": 1e-3, "weight_decay": 1e-3,
        "warmup": 1500,
    }  # fmt: skip
    assert data["train_view"]["init_args"] == {"short_side": 512, "scales": [0.5, 2.0], "crop": 512, "max_share": 0.75}
    assert data["test_view"]["init_args"] == {"size": 512}
    assert (data["batch_size"], trainer["max_steps"], trainer["val_check_interval"]) == (16, 40_000, 5000)
    dropout, norm, conv = segmentation.linear_head(192, 150)
    assert isinstance(dropout, nn.Dropout2d)
    assert dropout.p == 0.1
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(conv, nn.Conv2d)
    assert float(conv.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not conv.bias.any()
