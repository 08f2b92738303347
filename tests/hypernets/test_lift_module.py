"""Training of LIFT on made-up images and volumes, its shipped configs, and what its second stage reads."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from torch.utils.data import DataLoader

from huvr.cli import main
from huvr.data import read_image
from huvr.data.samples import seed_of
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError
from huvr.hypernets.lift import LIFTConfig
from huvr.hypernets.lift_classifier import LatentFile, classify
from huvr.hypernets.lift_images import LIFTImages
from huvr.hypernets.lift_meta import find_latents, reconstruct
from huvr.hypernets.lift_module import MetaLearning, iou, load
from huvr.hypernets.lift_store import LatentWriter
from huvr.hypernets.masking import Masking, masked_psnr
from huvr.hypernets.module import HyperNetwork
from huvr.model.tokens import Tokens

CONFIGS = Path(__file__).parents[2] / "configs" / "hypernets"
SHIPPED = {  # parameters by hand: SIRENs and the maps that all of them share
    "lift_image": 64 * 12_867 + 78_272,
    "relift_image": 64 * 12_867 + 78_272,
    "lift_voxel": 64 * (12_867 + 64 - 2 * 65) + 78_272,
}
TINY = LIFTConfig(cells=2, latents=((1, 8), (2, 8)), width=16, depth=2, inner_steps=2, inner_lr=10.0)


def loader(images: int = 8) -> DataLoader:
    pictures = F.interpolate(torch.rand(images, 3, 4, 4, generator=torch.Generator().manual_seed(0)), (16, 16), mode="bilinear")
    rows = [{"image": picture, "label": number % 2} for number, picture in enumerate(pictures)]
    return DataLoader(rows, batch_size=4)  # type: ignore[arg-type]


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    logger = TensorBoardLogger(folder, name=None, version="")
    defaults = {"accelerator": "cpu", "logger": logger, "max_steps": 2, "log_every_n_steps": 1, "default_root_dir": folder}
    return Trainer(**(quiet | defaults | options))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with ``pictures/``: two classes that differ in brightness."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(level, level + 40, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def small(name: str) -> list[str]:
    """Options that shrink a shipped config to a test."""
    changes = {"model.lift.width": 16, "trainer.max_steps": 2, "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1,
               "data.batch_size": 2, "data.workers": 0}  # fmt: skip
    if name == "lift_voxel":
        changes |= {"data.side": 16, "data.train": 4, "data.validation": 2}
    else:
        changes |= {"model.lift.cells": 4, "model.lift.latents": "[[1, 16], [2, 8], [4, 4]]", "data.root": "pictures",
                    "data.size": 16, "data.epoch_size": 4}  # fmt: skip
    return [f"--{key}={value}" for key, value in changes.items()]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_takes_two_steps(name: str, here: Path) -> None:
    assert main(["fit", "--config", f"hypernets/{name}.yaml", *small(name)]) == 0
    checkpoint = here / "runs" / name / "checkpoints" / "last.ckpt"
    net = load(checkpoint)
    config = net.config
    assert (config.residual, config.gamma > 1) == ((True, True) if name == "relift_image" else (False, False))
    signals = torch.rand(1, config.channels, *[16] * config.dims)
    assert reconstruct(net, signals).isfinite().all()
    events = EventAccumulator(str(here / "runs" / name)).Reload()
    assert {"val/psnr", "train/psnr", "train/loss", "grad_norm"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"pictures", "interpolation"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_says_what_to_expect_and_has_the_stated_size(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for words in (f"huvr fit --config hypernets/{name}.yaml", "Hardware: ", "Time: ", "Metric: "):
        assert words in header
    settings = yaml.safe_load(text)["model"]["init_args"]["lift"]
    latents = tuple(map(tuple, settings.pop("latents")))
    with torch.device("meta"):
        module = MetaLearning(LIFTConfig(latents=latents, **settings))
    assert sum(p.numel() for p in module.parameters()) == SHIPPED[name]


def test_training_learns_to_paint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MetaLearning(TINY, lr=3e-3, pictures_every=0)
    trainer(tmp_path, max_steps=40).fit(module, loader())
    curve = [event.value for event in EventAccumulator(str(tmp_path)).Reload().Scalars("train/psnr")]
    assert np.mean(curve[-4:]) > np.mean(curve[:4]) + 3


def test_measures_are_means_over_signals(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MetaLearning(TINY)
    [values] = trainer(tmp_path).validate(module, loader(7), verbose=False)
    images = torch.cat([batch["image"] for batch in loader(7)])
    errors = (reconstruct(module.net, images) - images).detach().square().mean((1, 2, 3)).numpy()
    assert values["val/psnr"] == pytest.approx(-10 * np.log10(errors).mean(), rel=1e-5)
    assert set(values) == {"val/psnr", "val/ssim"}


def test_with_masks_latents_are_of_what_is_seen_and_the_loss_is_of_the_whole_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    masking = Masking(0.5, 5)
    module = MetaLearning(TINY, masking, seed=3, pictures_every=0)
    net = LIFTImages(deepcopy(module.net))  # before the step
    images = next(iter(loader()))["image"]

    def painted(stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        mask = masking.masks(images, [seed_of("mask", 3, stage, 0, 0, 0, number) for number in range(4)])
        with torch.no_grad():
            return net.reconstruct(images.masked_fill(mask, 0), mask=mask), mask

    [values] = trainer(tmp_path, logger=False).validate(module, loader(4), verbose=False)
    picture, mask = painted("val")
    errors = (picture - images).square().mean((1, 2, 3))
    assert values["val/psnr"] == pytest.approx(-10 * errors.log10().mean().item(), rel=1e-5)
    assert values["val/psnr_hidden"] == pytest.approx(masked_psnr(picture, images, mask).mean().item(), rel=1e-5)
    trainer(tmp_path, max_steps=1).fit(module, loader(4))
    [loss] = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert loss.value == pytest.approx((painted("train")[0] - images).square().mean().item(), rel=1e-5)


def test_masks_are_those_of_all_hyper_networks() -> None:
    images, masking = torch.rand(2, 3, 16, 16), Masking(0.5, 3)
    ours = MetaLearning(TINY, masking, seed=5)
    theirs = HyperNetwork(LIFTImages(ours.net), masking, seed=5)
    assert all(map(torch.equal, ours.seen(images, "val", 7), theirs.seen(images, "val", 7)))


def test_masking_on_the_command_line(here: Path) -> None:
    options = ["--run", "run", *small("lift_image"), "--model.masking.ratio", "0.5", "--model.masking.cell", "4"]
    assert main(["fit", "--config", "hypernets/lift_image.yaml", *options]) == 0
    tags = EventAccumulator(str(here / "run")).Reload().Tags()
    assert {"val/psnr", "val/psnr_hidden"} <= set(tags["scalars"])
    assert "seen" in tags["images"]


def test_volumes_are_measured_by_error_psnr_and_overlap(tmp_path: Path) -> None:
    module = MetaLearning(LIFTConfig(dims=3, channels=1, cells=2, latents=((1, 4), (2, 4)), width=8, depth=2))
    volumes = (torch.rand(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    data = DataLoader([{"voxels": volume} for volume in volumes], batch_size=2)  # type: ignore[arg-type]
    [values] = trainer(tmp_path).test(module, data, verbose=False)
    painted = reconstruct(module.net, volumes.float()).detach().numpy().reshape(3, -1)
    truth = volumes.numpy().reshape(3, -1)
    errors = ((painted - truth) ** 2).mean(1)
    assert values["test/mse"] == pytest.approx(errors.mean(), rel=1e-5)
    assert values["test/psnr"] == pytest.approx(-10 * np.log10(errors).mean(), rel=1e-5)
    overlaps = [((p >= 0.5) & (t == 1)).sum() / ((p >= 0.5) | (t == 1)).sum() for p, t in zip(painted, truth, strict=True)]
    assert values["test/iou"] == pytest.approx(np.mean(overlaps), rel=1e-5)
    box = torch.zeros(1, 1, 2, 2, 2)
    assert iou(box, box).item() == 0  # nothing on either side


def test_latents_are_written_and_can_be_painted_and_told_apart(here: Path) -> None:
    run = ["--run", "run", *small("lift_image")]
    config = ["--config", "hypernets/lift_image.yaml"]
    swapped = ["--data.train_split", "val", "--data.val_split", "train", "--trainer.callbacks.file", "train.parquet"]
    assert main(["fit", *config, *run]) == 0
    assert main(["predict", *config, *run, "--ckpt_path", "auto"]) == 0
    assert main(["predict", *config, *run, "--ckpt_path", "auto", *swapped]) == 0
    table = pq.read_table("run/latents.parquet")
    assert table.column("label").to_pylist() == [0, 0, 1, 1]
    [grid_h], [grid_w] = (set(table.column(name).to_pylist()) for name in ("grid_h", "grid_w"))
    cls, patches = (torch.tensor(np.array(table.column(name).to_pylist())).float() for name in ("cls", "patches"))
    net = load("run/checkpoints/last.ckpt")
    files = sorted(here.glob("pictures/val/*/*.png"))
    images = torch.stack([centre_crop(16)(read_image(file)) for file in files]).float() / 255
    painted = net.render(Tokens(cls, patches, (grid_h, grid_w)), (16, 16))
    torch.testing.assert_close(painted, reconstruct(net, images), atol=0.02, rtol=0)  # the file holds float16
    assert images.std() > 0.1
    train, test = LatentFile("run/train.parquet"), LatentFile("run/latents.parquet")
    assert (len(train), len(test), train.dim) == (12, 4, 16 + 4 * 8 + 16 * 4)
    assert classify(train, test, epochs=20) == 100


def test_the_file_holds_the_latents_coarse_to_fine(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MetaLearning(TINY)
    trainer(tmp_path, callbacks=[LatentWriter("found.parquet")]).predict(module, loader(5), return_predictions=False)
    images = torch.cat([batch["image"] for batch in loader(5)])
    expected = torch.cat([level.flatten(1) for level in find_latents(module.net, images)], dim=1)
    found, labels = next(LatentFile(tmp_path / "found.parquet").pieces())
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert labels.tolist() == [0, 1, 0, 1, 0]


def test_nothing_half_written_remains(tmp_path: Path) -> None:
    module = MetaLearning(TINY)
    broken = [*list(loader(4).dataset), {"image": torch.rand(3, 15, 16), "label": 0}]
    with pytest.raises(HuvrError, match="signals of 15x16: each side must be a multiple of the 2 cells"):
        trainer(tmp_path, callbacks=[LatentWriter()], logger=False).predict(module, DataLoader(broken, batch_size=1))  # type: ignore[arg-type]
    assert list(tmp_path.rglob("*latents*")) == []


def test_mistakes_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "hypernets/lift_image.yaml", *small("lift_image"), "--data.size", "18"]) == 2
    assert "signals of 18x18: each side must be a multiple of the 4 cells along it" in capsys.readouterr().err
    for changes, message in (({"lr": 0.0}, "lr 0.0"), ({"pictures_every": -1}, "pictures_every -1")):
        with pytest.raises(HuvrError, match=message):
            MetaLearning(TINY, **changes)
    with pytest.raises(HuvrError, match="dims 3: masking hides cells of images, not of volumes"):
        MetaLearning(LIFTConfig(dims=3), Masking())
    with pytest.raises(HuvrError, match="dims 3: batches need 'voxels', these have 'image'"):
        MetaLearning(LIFTConfig(dims=3)).signals({"image": torch.rand(1, 3, 4, 4)})
    with pytest.raises(HuvrError, match=r"gone\.ckpt: not a readable"):
        load("gone.ckpt")
    with pytest.raises(HuvrError, match=r"gone\.parquet: not a readable Parquet file"):
        LatentFile("gone.parquet")


@torch.no_grad()
def test_images_by_the_interface_of_all_hyper_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lift = MetaLearning(TINY).net
    net = LIFTImages(lift)
    images = next(iter(loader()))["image"]
    parameters = net.encode(images)
    assert parameters.numbers == 8 + 4 * 8
    torch.testing.assert_close(net.reconstruct(images), reconstruct(lift, images))
    torch.testing.assert_close(net.reconstruct(images, scale=2), lift.render(net.tokens(images), (16, 16), scale=2))
    points = torch.rand(len(images), 9, 2) * 2 - 1
    own = net.query(parameters, points)
    for number in range(len(images)):
        torch.testing.assert_close(own[number], net.query(parameters, points[number : number + 1])[number])
    assert net.query(parameters, points[:, :0]).shape == net.query(parameters, points[:1, :0]).shape == (4, 0, 3)
    whole, sizes = net.render(parameters, scale=2), []
    monkeypatch.setattr("huvr.hypernets.interface.POINTS", 100)
    monkeypatch.setattr(
        net, "_paint", lambda parameters, part: sizes.append(part.shape[1]) or type(net)._paint(net, parameters, part)
    )
    torch.testing.assert_close(net.render(parameters, scale=2), whole, atol=1e-6, rtol=0)
    assert sizes == [100] * 10 + [24]
    with pytest.raises(HuvrError, match="paints no images"):
        LIFTImages(MetaLearning(LIFTConfig(dims=3, channels=1)).net)
    with pytest.raises(HuvrError, match="each side must be a multiple of the 2 cells"):
        net.encode(torch.rand(1, 3, 1, 16))
    for ask in (net.encode, net.tokens):
        with pytest.raises(HuvrError, match="uint8: expected floating-point"):
            ask(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
        with pytest.raises(HuvrError, match="signals of 0x0"):
            ask(torch.rand(1, 3, 0, 0))


def test_going_on(tmp_path: Path) -> None:
    """At the rate asked for, with the network of the checkpoint; its descent may change, the tables of cells no average."""
    first = trainer(tmp_path, max_steps=1)
    first.fit(MetaLearning(TINY, lr=1e-3, pictures_every=0), loader())
    first.save_checkpoint(tmp_path / "first.ckpt")
    again = trainer(tmp_path, max_steps=2)
    going_on: dict[str, Any] = {"ckpt_path": tmp_path / "first.ckpt", "weights_only": True}
    again.fit(MetaLearning(replace(TINY, inner_steps=1), lr=0.5, pictures_every=0), loader(), **going_on)
    assert again.optimizers[0].param_groups[0]["lr"] == 0.5
    with pytest.raises(HuvrError, match=r"ckpt_path: another network than net: omega is 10\.0, not 30\.0"):
        trainer(tmp_path).validate(MetaLearning(replace(TINY, omega=30.0)), loader(), **going_on)
    with pytest.raises(HuvrError, match="averages of LIFT's buffers, which are tables of cells: set use_buffers: false"):
        trainer(tmp_path, callbacks=[EMAWeightAveraging()]).fit(MetaLearning(TINY, pictures_every=0), loader())
    trainer(tmp_path, callbacks=[EMAWeightAveraging(use_buffers=False)]).fit(MetaLearning(TINY, pictures_every=0), loader())
