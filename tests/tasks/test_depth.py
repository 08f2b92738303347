"""Depth: metrics, loss, bins and views against cases done by hand; the shipped protocol; a head that learns what is there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.nn import functional as F
from torchvision import tv_tensors

from huvr.cli import main
from huvr.errors import HuvrError
from huvr.model import HUVR, HUVRConfig, Tokens
from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.depth import Depth, DepthHead, one_cycle
from huvr.tasks.depth_metrics import PER_IMAGE, DepthMetrics, image_metrics, sig_loss
from huvr.tasks.depth_views import ColourJitter, DepthView, FixedCrop, ReadDepth, tiles

PROTOCOL = Path(__file__).parents[2] / "configs" / "probe" / "nyuv2.yaml"


def pair(root: Path, split: str, name: str, image: np.ndarray, depth: np.ndarray) -> None:
    """An image uint8 (H, W, 3) and its depth in millimetres."""
    for folder, picture in (("images", image), ("depth", depth.astype(np.uint16))):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / split / folder / f"{name}.png")


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``rooms/`` in an empty working directory: three pairs of 32x48 pixels to learn from and two to be measured on."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            image = generator.integers(0, 256, (32, 48, 3), np.uint8)
            pair(Path("rooms"), split, str(number), image, generator.integers(700, 9000, (32, 48)))
    return Path("rooms")


def probe(encoder: str, *options: str, task: str = "depth") -> dict[str, Any]:
    arguments = ["probe", "--task", task, "--encoder", encoder, "--data.root", "rooms", "--data.workers", "0", "--run", "there"]
    assert main([*arguments, "--trainer.max_steps", "2", *options]) == 0
    return json.loads(Path("there/record.json").read_text())


def error_of(capsys: pytest.CaptureFixture[str], encoder: str, *options: str) -> str:
    arguments = ["probe", "--task", "depth", "--encoder", encoder, "--data.root", "rooms", "--data.workers", "0", *options]
    assert main([*arguments, "--trainer.max_steps", "1"]) == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("huvr: error: ")


def test_metrics_of_an_image_by_hand() -> None:
    """Ratios of 1, 1.25 (no longer below it), 1.5, 2, and 0.8 of the truth."""
    truth = torch.tensor([2.0, 4.0, 2.0, 1.0, 5.0], dtype=torch.float64)
    predicted = torch.tensor([2.0, 5.0, 3.0, 2.0, 4.0], dtype=torch.float64)
    found = dict(zip(PER_IMAGE, image_metrics(predicted, truth).tolist(), strict=True))
    assert found == pytest.approx({
        "rmse": math.sqrt(4 / 5),
        "abs_rel": (0 + 0.25 + 0.5 + 1 + 0.2) / 5,
        "log10": (0 + math.log10(1.25) + math.log10(1.5) + math.log10(2) + math.log10(1.25)) / 5,
        "delta1": 20,  # 1.25 itself is not below 1.25
        "delta2": 80,  # below 1.5625
        "delta3": 80,  # below 1.953
    })  # fmt: skip


def test_metrics_of_a_set_are_means_of_images_and_pooled_only_by_name() -> None:
    """Errors of 1 in all four pixels of an image, of 3 in the one measured of the other."""
    truth, measured = torch.full((2, 2, 2), 4.0), torch.ones(2, 2, 2, dtype=torch.bool)
    predicted = torch.stack([truth[0] + 1, truth[1] + 3])
    measured[1] = torch.tensor([[True, False], [False, False]])
    predicted[1, 1] = 100.0
    together, apart, other = DepthMetrics(), DepthMetrics(), DepthMetrics()
    together.update(predicted, truth, measured)
    for metrics, one in ((apart, slice(0, 1)), (other, slice(1, 2))):
        metrics.update(predicted[one], truth[one], measured[one])
    apart.merge_state(other)  # what processes do
    for metrics in (together, apart):
        found = {name: value.item() for name, value in metrics.compute().items()}
        assert found["rmse"] == pytest.approx((1 + 3) / 2)
        assert found["rmse_pooled"] == pytest.approx(math.sqrt((4 * 1 + 9) / 5))
        assert found["abs_rel"] == pytest.approx((1 / 4 + 3 / 4) / 2)
        assert (found["delta1"], found["delta2"], found["delta3"]) == (0, 50, 100)


def test_the_loss_by_hand_and_without_its_variance() -> None:
    predicted, truth = np.array([1.0, 2.0, 7.0]), np.array([1.5, 2.5, 3.0])
    g = np.log(predicted + 1e-3) - np.log(truth + 1e-3)
    tensors = torch.tensor(predicted), torch.tensor(truth)
    assert sig_loss(*tensors).item() == pytest.approx(math.sqrt(np.var(g, ddof=1) + 0.15 * g.mean() ** 2))
    assert sig_loss(*tensors, with_variance=False).item() == pytest.approx(math.sqrt(0.15) * abs(g.mean()))
    perfect = torch.ones(3, requires_grad=True)
    sig_loss(perfect, torch.ones(3)).backward()
    assert torch.equal(perfect.grad, torch.zeros(3))


def test_depth_is_the_weighted_mean_of_the_bins() -> None:
    """Three bins at 1, 2 and 3 m; logits -1, 0.4, 0.9 weigh 0.1, 0.5, 1, and those of the other token 0.1 each."""
    head = DepthHead(2, 3, 1.0, 3.0).eval()
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[-1.0, 0.0], [0.4, 0.0], [0.9, 0.0]])[..., None, None])
    features = torch.tensor([[1.0, 5.0], [0.0, -2.0]]).T[None, :, None]  # (1, 2, 1, 2): two tokens across
    depth = head(features * math.sqrt(1 + head.norm.eps))
    assert depth.shape == (1, 1, 2)
    assert depth.flatten().tolist() == pytest.approx([(0.1 * 1 + 0.5 * 2 + 1 * 3) / 1.6, 2.0])


def test_the_schedule_of_dinov3() -> None:
    share = [one_cycle(step, 38400, 12800) for step in range(38400)]
    assert share[0] == 1e-3
    assert share[6400] == pytest.approx(0.001 + 0.5 * (1 + math.cos(math.pi / 6)) / 2)
    assert share[12800] == pytest.approx(0.75, abs=1e-3)  # a third of the way along the cosine
    assert share[-1] == pytest.approx(1 / 25000)
    assert max(share) == share[12799] or max(share) == pytest.approx(0.75, abs=2e-3)


def test_images_and_depth_move_together() -> None:
    """The depth is made of the image, so it still fits whatever happens to both."""
    torch.manual_seed(0)
    ramp = torch.arange(60 * 80).view(60, 80) % 251
    image, depth = tv_tensors.Image(ramp.byte().expand(3, -1, -1)), tv_tensors.Mask(1 + ramp.float())
    view = DepthView((4, 56, 6, 76), rotation=0, crop=(32, 48), gamma=(1, 1), brightness=(1, 1), colour=(1, 1))
    seen = []
    for _ in range(20):
        moved, truth = view(image, depth)
        assert (moved.shape, truth.shape, moved.dtype) == ((3, 32, 48), (32, 48), torch.float32)
        torch.testing.assert_close(moved[0] * 255 + 1, truth.as_subclass(torch.Tensor), check_dtype=False)
        seen.append(truth[0, 0].item())
    assert len({*seen}) > 5
    box = FixedCrop((4, 56, 6, 76))(image, depth)[1]
    assert torch.equal(box.as_subclass(torch.Tensor), 1 + ramp[4:56, 6:76].float())


def test_rotation_uncovers_pixels_without_depth() -> None:
    torch.manual_seed(1)
    image, depth = tv_tensors.Image(torch.full((3, 64, 64), 200, dtype=torch.uint8)), tv_tensors.Mask(torch.full((64, 64), 5.0))
    corners = []
    for _ in range(20):
        depths = DepthView(rotation=20)(image, depth)[1].unique().tolist()
        assert set(depths) <= {0.0, 5.0}  # nearest: no depth between
        corners.append(0.0 in depths)
    assert 4 <= sum(corners) <= 16  # every other image


def test_colours_change_by_gamma_of_bytes_brightness_and_a_factor_each() -> None:
    image, depth = tv_tensors.Image(torch.full((3, 2, 2), 100 / 255)), tv_tensors.Mask(torch.ones(2, 2))
    found, untouched = ColourJitter((1.1, 1.1), (0.5, 0.5), (0.9, 0.9))(image, depth)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), torch.full((3, 2, 2), 100**1.1 * 0.5 * 0.9 / 255))
    assert torch.equal(untouched, depth)
    bright = ColourJitter((1.1, 1.1), (1.0, 1.0), (1.0, 1.0))(tv_tensors.Image(torch.ones(3, 1, 1)))
    assert bright.max() == 1  # clipped
    torch.manual_seed(0)
    colours = ColourJitter((1, 1), (1, 1), (0.5, 1.0))(image)[:, 0, 0]
    assert len({*colours.tolist()}) == 3


def test_the_mask_and_the_range_decide_what_is_measured(encoder: str) -> None:
    task = Depth(EncoderConfig(encoder), mask=(45, 471, 41, 601))
    truth = torch.full((1, 480, 640), 5.0)
    assert task.valid(truth, ["a"]).sum() == (471 - 45) * (601 - 41)
    assert task.valid(truth, ["a"])[0, [45, 470], [41, 600]].all()
    assert not task.valid(truth, ["a"])[0, [44, 471, 45, 45], [41, 41, 40, 601]].any()
    truth[0, 100, :4] = 1e6
    truth[0, 100, 100:104] = torch.tensor([0, 0.001, 10, 9.99])
    assert task.valid(truth, ["a"])[0, 100, 100:104].tolist() == [False, False, False, True]
    assert Depth(EncoderConfig(encoder)).valid(truth, ["a"]).sum() == 480 * 640 - 7


def test_the_picture_has_one_scale() -> None:
    truth = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    shown = tiles(torch.rand(3, 2, 2), truth, truth > 0, torch.tensor([[3.0, 1.0], [2.0, 99.0]]))
    assert shown.shape == (3, 3, 2, 2)
    assert shown[1, :, 1, 1].tolist() == [0.5, 0.5, 0.5]
    assert torch.equal(shown[1, :, 0].flip(-1), shown[2, :, 0])  # the same depths, the other way round
    assert torch.equal(shown[1, :, 1, 0], shown[2, :, 1, 0])
    assert shown[1, :, 0, 0].max() == 0  # near is black
    assert shown[2, :, 1, 1].min() > 0.9  # beyond the scale: white


def test_the_prediction_is_the_mean_with_that_for_the_mirror_image(
    encoder: str, rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    task = Depth(EncoderConfig(encoder))
    torch.nn.init.normal_(task.head.linear.weight)
    task.eval()
    images = torch.rand(1, 3, 32, 48)
    monkeypatch.setattr(task.metrics, "update", lambda predicted, truth, valid: found.update(predicted=predicted))
    task.test_step({"image": images, "target": torch.full((1, 64, 96), 5.0), "name": ["a"]}, 0)

    with torch.no_grad():
        depths = [task.head(task.encoder(each).map) for each in (images, torch.flip(images, [3]))]
        by_hand = (depths[0] + torch.flip(depths[1], [2])) / 2
    full = F.interpolate(F.interpolate(by_hand[:, None], (32, 48), mode="bilinear"), (64, 96), mode="bilinear")[:, 0]
    torch.testing.assert_close(found["predicted"], full)
    assert not torch.allclose(found["predicted"], task(images, (64, 96)))
    assert task.details["bytes_per_image"] == (1 + 4 * 6) * 48 * 2  # 8 pixels a patch, 48 numbers of 2 bytes


class Waves:
    """Tokens that are waves of the mean grey of each patch, for a frozen encoder's."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        self.network, self.stored_bytes = encoder.network, encoder.stored_bytes

    def __call__(self, images: torch.Tensor) -> Tokens:
        grey = F.avg_pool2d(images.mean(1, keepdim=True), 8)
        waves = torch.linspace(1, 18, 48)[:, None, None] * (grey + torch.linspace(0, 1, 48)[:, None, None])
        patches = waves.sin().flatten(2).transpose(1, 2)
        return Tokens(patches.mean(1), patches, (4, 6))


class Scenes(LightningDataModule):
    """Random depths per patch, and images whose grey is the depth, or has nothing to do with it."""

    def __init__(self, holds_depth: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        share = torch.rand(2, 40, 1, 4, 6, generator=generator)
        self.depth = F.interpolate(1 + 6 * share[0], (32, 48), mode="bilinear")[:, 0]
        self.images = F.interpolate(share[0 if holds_depth else 1], scale_factor=8).expand(-1, 3, -1, -1)

    def _batches(self, numbers: range, size: int) -> Any:
        rows = [{"image": self.images[number], "target": self.depth[number], "name": str(number)} for number in numbers]
        return torch.utils.data.DataLoader(rows, size)  # type: ignore[arg-type]

    def train_dataloader(self) -> Any:
        return self._batches(range(32), 8)

    def test_dataloader(self) -> Any:
        return self._batches(range(32, 40), 1)


@pytest.mark.parametrize("holds_depth", [True, False])
def test_the_head_learns_depth_that_is_there_and_no_other(
    holds_depth: bool, encoder: str, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("huvr.tasks.depth.WITHOUT_VARIANCE", 10)  # of fewer steps in all
    task, data = Depth(EncoderConfig(encoder), lr=3e-2, warmup_steps=10), Scenes(holds_depth)
    task.encoder = Waves(task.encoder)  # type: ignore[assignment]
    trainer = quiet(max_epochs=25, limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    (metrics,) = trainer.test(task, datamodule=data, verbose=False)
    constant = (data.depth[32:] - data.depth[:32].mean()).square().mean().sqrt().item()
    if holds_depth:
        assert metrics["rmse_pooled"] < 0.25 * constant
        assert metrics["delta1"] > 95
    else:
        assert metrics["rmse_pooled"] > 0.95 * constant
        assert metrics["delta1"] < 60


def test_the_shipped_protocol_is_that_of_dinov3() -> None:
    settings = yaml.safe_load(PROTOCOL.read_text())
    assert settings["model"]["init_args"] == {
        "min_depth": 0.001, "max_depth": 10, "bins": 256, "depth_scale": 1000, "mask": [45, 471, 41, 601],
        "lr": 3e-4, "warmup_steps": 12800, "betas": [0.9, 0.99], "weight_decay": 1e-4,
    }  # fmt: skip
    data = settings["data"]["init_args"]
    assert (data["target"], data["batch_size"]) == ("depth", 16)
    assert data["train_view"]["init_args"] == {
        "fixed_crop": [45, 472, 43, 608], "rotation": 2.5, "crop": [416, 544],
        "gamma": [0.9, 1.1], "brightness": [0.75, 1.25], "colour": [0.9, 1.1],
    }  # fmt: skip
    assert (settings["trainer"]["max_steps"], settings["trainer"]["gradient_clip_val"]) == (38400, 35)
    (keeping,) = settings["trainer"]["callbacks"]
    assert "monitor" not in keeping["init_args"]  # the last weights are tested, whatever the others would give


def test_the_shipped_protocol_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    HUVR(HUVRConfig(width=24, depth=1, heads=1, decoder_width=24, decoder_depth=1, decoder_heads=1, patch=32)).save("net")
    rows, columns = np.mgrid[:480, :640]
    for split, count in (("train", 2), ("test", 1)):
        for number in range(count):
            image = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
            pair(Path("rooms"), split, str(number), image, 1000 + 10 * rows + number)
    record = probe("net", "--data.batch_size", "2", task="nyuv2")
    metrics = record["metrics"]
    assert metrics.keys() == {*PER_IMAGE, "rmse_pooled"}
    assert metrics["rmse"] == pytest.approx(metrics["rmse_pooled"], rel=1e-5)  # a single image
    # Two steps leave the weighted mean near the middle of the bins, 5 m; the truth inside of the mask is 1.45 to 5.7 m.
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((5 - (1.0 + 0.01 * np.arange(45, 471))) ** 2)), rel=0.05)
    assert (record["headline"], record["lower_is_better"]) == ("rmse", True)
    assert record["bytes_per_image"] == (1 + 15 * 20) * 24 * 2
    assert record["data"] == {"train": "rooms (train), 2 images", "test": "rooms (test), 1 images"}
    with Image.open("there/depth.png") as picture:
        assert picture.size == (3 * 640 + 2 * 4, 480)
    checkpoint = torch.load("there/checkpoints/last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"head"}
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.9, 0.99), 1e-4)
    assert group["lr"] == pytest.approx(3e-4 * (1e-3 + 0))  # after both steps of two: the cosine is at its end


@pytest.mark.parametrize("tokens", ["tintok", "pca4"])
def test_it_runs_on_other_tokens_and_sizes(tokens: str, encoder: str, rooms: Path) -> None:
    """Crops of 20x28 fill no whole patches of 8 pixels."""
    crop = ["--data.train_view.crop", "[20, 28]", "--model.mask", "[1, 31, 2, 46]"]
    record = probe(encoder, "--tokens", tokens, "--data.batch_size", "3", *crop)
    assert record["bytes_per_image"] == (1 + 4 * 6) * 2 * {"tintok": 8, "pca4": 4}[tokens]
    assert all(math.isfinite(value) for value in record["metrics"].values())


def test_a_resumed_probe_follows_the_options_it_is_given(encoder: str, rooms: Path) -> None:
    small = ["--data.train_view.crop", "[20, 28]", "--model.mask", "null", "--model.warmup_steps", "0"]
    probe(encoder, *small)
    changed = ["--model.lr", "0.5", "--model.weight_decay", "0.25", "--model.betas", "[0.8, 0.9]"]
    probe(encoder, *small, *changed, "--ckpt_path", "auto", "--trainer.max_steps", "3")
    (group,) = torch.load("there/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["weight_decay"], tuple(group["betas"])) == (0.5, 0.25, (0.8, 0.9))


def test_depth_that_cannot_be_right_is_named(encoder: str, rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(rooms, "test", "0", np.zeros((32, 48, 3), np.uint8), np.zeros((32, 48)))
    read = "rooms/test/images/0.png: depth of 0 to 0 m; expected some between 0.001 and 10 m, 1000 being stored for a metre"
    assert error_of(capsys, encoder) == read
    pair(rooms, "test", "0", np.zeros((32, 48, 3), np.uint8), np.full((20, 48), 3000))
    assert error_of(capsys, encoder) == (
        "rooms/test/images/0.png: the image has 32x48 pixels, its target 20x48; expected the same"
    )
    pair(rooms, "test", "0", np.zeros((32, 48, 3), np.uint8), np.full((32, 48), 3000))
    mask = "rooms/test/images/0.png: mask of rows 0:33, columns 0:46: not inside of an image of 32x48 pixels"
    assert error_of(capsys, encoder, "--model.mask", "[0, 33, 0, 46]") == mask
    crop = "fixed_crop of rows 0:32, columns 0:49: not inside of an image of 32x48 pixels"
    assert error_of(capsys, encoder, "--data.train_view.fixed_crop", "[0, 32, 0, 49]").endswith(crop)


def test_nothing_to_measure_or_to_learn_from_is_named(encoder: str) -> None:
    task, truth = Depth(EncoderConfig(encoder), mask=(0, 4, 0, 4)), torch.zeros(2, 8, 8)
    truth[0, 0, 0] = truth[1, 4, 4] = 1
    with pytest.raises(HuvrError, match=r"b: no depth between 0\.001 and 10 m inside of the mask"):
        task.valid(truth, ["a", "b"])
    with pytest.raises(HuvrError, match="a, b: the views of training have not two pixels with a depth"):
        task.training_step({"image": torch.rand(2, 3, 8, 8), "target": torch.zeros(2, 8, 8), "name": ["a", "b"]}, 0)
    with pytest.raises(HuvrError, match="crop 9x8: not inside of what the fixed crop leaves, 8x8 pixels"):
        DepthView(crop=(9, 8))(tv_tensors.Image(torch.rand(3, 8, 8)), tv_tensors.Mask(truth[0]))


def test_stored_numbers_become_metres_or_an_error() -> None:
    read = ReadDepth(1000.0, 0.001, 10.0)
    assert torch.equal(read(torch.tensor([[500, 0]]), "a"), torch.tensor([[0.5, 0.0]]))
    for wrong in (float("nan"), float("inf"), -3.0):
        with pytest.raises(HuvrError, match=r"a\.png: depth of .* expected finite numbers from 0 on, 0 where there is none"):
            read(torch.tensor([[1000.0, wrong]]), "a.png")
    metres = torch.tensor([[0.7, 9.7]])
    with pytest.raises(
        HuvrError, match=r"a\.tif: depth of 0.0007 to 0.0097 m; expected some between .* 1000 being stored for a metre"
    ):
        read(metres, "a.tif")
    assert torch.equal(ReadDepth(1.0, 0.001, 10.0)(metres, "a.tif"), metres)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_depth": 10.0}, "min_depth 10.0, max_depth 10.0: expected 0 <= min_depth < max_depth"),
        ({"min_depth": -1.0}, "min_depth -1.0, max_depth 10.0"),
        ({"bins": 1}, "bins 1: expected 2 or more"),
        ({"depth_scale": 0.0}, "depth_scale 0.0, lr 0.0003: expected positive"),
        ({"betas": (0.9, 1.0)}, r"betas \[0.9, 1.0\]"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(encoder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        Depth(EncoderConfig(encoder), **options)


@pytest.mark.parametrize("options", [{"gamma": (1.1, 0.9)}, {"colour": (0.0, 1.0)}, {"crop": (0, 4)}, {"rotation": -1.0}])
def test_views_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(HuvrError, match=next(iter(options))):
        DepthView(**options)
