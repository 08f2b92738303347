"""The additions to pretrain.yaml and the commands of docs/reproduce.md: sizes of the networks, and that they run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import huvr
from huvr.cli import main
from huvr.commands import tasks
from huvr.commands.training import TrainingCLI

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHIPPED = sorted(path.name for path in (CONFIGS / "pretrain").glob("*.yaml"))
TEXT = (ROOT / "docs" / "reproduce.md").read_text()
# Of the released networks with their four heads, counted by running the released code; ours have no LayerNorm of two vectors
# before the up-projection, but a cosine head. ViT-L was counted with TinToks of 32 alone: the others follow from the two
# projections, 1024 to d with biases and d to 1280.
COSINE_HEAD = 256 * 768 + 768 + 256 * 768
RELEASED = {
    ("ViT-B/16", 8): 123_794_248,
    ("ViT-B/16", 16): 123_808_608,
    ("ViT-B/16", 32): 123_837_328,
    ("ViT-B/16", 256): 124_239_408,
}
RELEASED |= {("ViT-L/16", dim): 350_934_608 + (dim - 32) * (1024 + 1 + 1280 + 2) for dim in (8, 16, 32, 256)}
ROW = re.compile(r"\| (ViT-\S+) \| (\d+) \| ([\d.]+) M \| `(huvr fit [^`]+)` \|")
ROWS = {(name, int(dim)): (float(millions), command) for name, dim, millions, command in ROW.findall(TEXT)}


def test_every_size_has_its_command() -> None:
    assert ROWS.keys() == RELEASED.keys()
    named = {name for _, command in ROWS.values() for name in re.findall(r"--config pretrain/(\S+)", command)}
    assert sorted(named) == SHIPPED


@pytest.mark.parametrize("size", RELEASED, ids=str)
def test_a_command_builds_a_network_of_its_size(size: tuple[str, int]) -> None:
    millions, command = ROWS[size]
    with torch.device("meta"):
        cli = TrainingCLI("fit", [*shlex.split(command)[2:], "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"])
    found = sum(p.numel() for p in cli.model.parameters())
    assert found == RELEASED[size] - 2 * size[1] + COSINE_HEAD
    assert round(found / 1e6, 1) == millions
    assert cli.model.net.config.tintok_dim == size[1]
    # the rest of the recipe is that of pretrain.yaml
    assert (cli.model.lr, cli.model.warmup, cli.trainer.max_epochs, cli.trainer.gradient_clip_val) == (5e-4, 0.1, 50, 0.01)
    assert [teacher.name for teacher in cli.model.teachers] == ["vit_large_patch16_dinov3.lvd1689m"]


def test_two_additions_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    for number, split in enumerate(("train", "train", "val")):
        folder = tmp_path / "pictures" / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    save_file(timm.create_model("test_vit").state_dict(), "teacher.safetensors")
    changes = {
        "model.net.width": 48, "model.net.depth": 1, "model.net.heads": 3, "model.net.decoder_width": 48,
        "model.net.decoder_heads": 3, "model.net.decoder_depth": 1, "model.net.decoder_hidden": 96,
        "model.net.inr_widths": "[16, 16, 16]", "model.teachers": "[{name: test_vit, weights: teacher.safetensors}]",
        "data.root": "pictures", "data.size": 32, "data.batch_size": 2, "data.epoch_size": 4, "data.workers": 0,
        "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "trainer.precision": "32-true",
    }  # fmt: skip
    command = shlex.split(ROWS["ViT-L/16", 8][1])[1:]
    assert main([*command, *(f"--{key}={value}" for key, value in changes.items())]) == 0
    assert huvr.load("runs/vitl_dt8").config.tintok_dim == 8


@pytest.mark.parametrize("name", SHIPPED)
def test_the_header_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    text = (CONFIGS / "pretrain" / name).read_text()
    for words in (f"huvr fit --config pretrain.yaml --config pretrain/{name} ", "Hardware: ", "Time and PSNR: "):
        assert words in text


def test_the_configs_tasks_and_benchmarks_of_the_document_exist() -> None:
    for name in re.findall(r"--config ([\w/]+\.yaml)", TEXT):
        assert (CONFIGS / name).is_file(), name
    assert {*re.findall(r"--task (\w+)", TEXT)} <= {*tasks.installed()}
    for script in re.findall(r"python (benchmarks/\w+\.py)", TEXT):
        assert (ROOT / script).is_file(), script
