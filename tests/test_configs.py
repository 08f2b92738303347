"""Every shipped config: two steps with only widths, depth and data reduced, and its full-size model on the meta device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from PIL import Image
from safetensors.torch import save_file

import huvr
from huvr.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
PARAMETERS = {
    # the released network with its four distillation heads, less the LayerNorm before the up-projection, plus the cosine
    # head (256 × 768 + 768 for the patch vector, 256 × 768 for the global one)
    "pretrain.yaml": 123_837_328 - 64 + 393_984,
    # by hand: ViT-Ti with 16 × 16 positions, bottleneck, decoder, INR with cosine head; four heads of 192 × 192 + 192, each
    # behind a LayerNorm
    "tiny.yaml": (TINY := 5_535_936 + 12_896 + 888_576 + 352_432 + 4 * (192 * 193 + 2 * 192)),
    "tiny_draw.yaml": TINY,
    # by hand: encoder, bottleneck, decoder, INR with cosine head
    "demo.yaml": 1_932_800 + 15_008 + 526_848 + 369_072,
}
SMALL = {
    "model.net.width": 48, "model.net.depth": 1, "model.net.heads": 3, "model.net.decoder_width": 48,
    "model.net.decoder_heads": 3, "model.net.decoder_depth": 1, "model.net.decoder_hidden": 96,
    "model.net.inr_widths": "[16, 16, 16]",
}  # fmt: skip


def test_all_shipped_configs_are_tested() -> None:
    shipped = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*.yaml")}
    assert shipped == {*PARAMETERS}  # those in folders, by the tests of what they are for


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 128, 3), dtype=np.uint8)
    for split, numbers in {"train": range(3), "val": [3]}.items():
        (folder / split).mkdir()
        for number in numbers:
            Image.fromarray(pixels[number]).save(folder / split / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", PARAMETERS)
def test_two_steps(name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = SMALL | {
        "data.root": photos, "data.batch_size": 2, "data.epoch_size": 4, "data.workers": 0, "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1,
    }  # fmt: skip
    if yaml.safe_load((CONFIGS / name).read_text())["model"]["init_args"].get("teachers"):
        save_file(timm.create_model("test_vit").state_dict(), "teacher.safetensors")
        changes["model.teachers"] = "[{name: test_vit, weights: teacher.safetensors}]"
    if name.startswith("tiny"):
        begin = {"tiny.yaml": ("encoder_weights", "teacher.safetensors"), "tiny_draw.yaml": ("start", "null")}[name]
        changes |= {"model.net.encoder": "test_vit", f"model.{begin[0]}": begin[1], "trainer.precision": "32-true"}
    options = [f"--{key}={value}" for key, value in changes.items()]
    assert main(["fit", "--config", name, *options]) == 0
    run = tmp_path / "runs" / Path(name).stem
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    image = torch.rand(1, 3, 40, 56)
    assert huvr.load(run).reconstruct(image).isfinite().all()


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_full_size(name: str, parameters: int) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model")
    config = parser.parse_object({"model": yaml.safe_load((CONFIGS / name).read_text())["model"]})
    with torch.device("meta"):
        model = parser.instantiate_classes(config).model
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_header_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    header = "".join(line for line in (CONFIGS / name).read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"huvr fit --config {name}" in header
    assert "Hardware" in header
    assert "PSNR" in header
