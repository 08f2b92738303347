"""``huvr generate``: pictures, files, and what it says of mistakes; and every shipped config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

import huvr
from huvr import cli
from huvr.data.sources import open_splits
from huvr.tasks.generation.dit import DiT
from huvr.tasks.generation.generator import load_generator
from huvr.tasks.generation.sampling import Sampling

CONFIGS = Path(__file__).parents[3] / "configs" / "generate"
# on the 16×16 grid of TinToks of 32, for 1000 classes; the original's, and the global token's projections of 32 and 2·32
ORIGINAL = {"dit_s": (32_883_520, 384), "dit_b": (130_352_704, 768), "dit_l": (457_889_856, 1024), "dit_xl": (674_890_048, 1152)}


@pytest.fixture
def generator(learn: Callable[..., Any], pictures: Path) -> str:
    """A run of two steps, whose answers are not zero."""
    kept = ModelCheckpoint("run/checkpoints", "last", monitor=None)
    learn(pictures, 2, model={"lr": 0.05}, enable_checkpointing=True, callbacks=[kept])
    return "run"


@pytest.fixture
def generate() -> Callable[..., int]:
    def run(*arguments: str) -> int:
        return cli.main(["generate", "--steps", "3", *arguments])

    return run


def test_a_grid_has_a_row_for_each_class(generate: Any, generator: str) -> None:
    assert (
        generate("--generator", generator, "--classes", "red,0", "--per-class", "3", "--guidance", "3", "--out", "grid.png") == 0
    )
    assert Image.open("grid.png").size == (3 * 34 + 2, 2 * 34 + 2)


def test_the_same_pictures_whatever_the_batch(generate: Any, generator: str) -> None:
    for size in ("1", "4"):
        options = ("--classes", "0,1", "--per_class", "3", "--batch_size", size, "--seed", "7", "--out", f"{size}.npz")
        assert generate("--generator", generator, *options) == 0
    one, four = np.load("1.npz"), np.load("4.npz")
    assert one["arr_0"].shape == (6, 32, 32, 3)
    assert one["arr_0"].dtype == np.uint8
    assert one["arr_1"].tolist() == [0, 0, 0, 1, 1, 1]
    assert abs(one["arr_0"].astype(int) - four["arr_0"]).max() <= 1  # products of matrices round differently
    assert one["arr_0"].std() > 0


def test_an_npz_holds_the_pictures_of_the_generator(generate: Any, generator: str) -> None:
    assert generate("--generator", generator, "--per_class", "2", "--out", "two.npz", "--scale", "2") == 0
    content = np.load("two.npz")
    assert content.files == ["arr_0"]
    drawn = load_generator(generator).pictures(2, None, Sampling(steps=3), scale=2)
    for found, picture in zip(content["arr_0"], drawn, strict=True):
        assert np.array_equal(found, (picture * 255).round().byte().permute(1, 2, 0).numpy())


def test_a_folder_can_be_read_again_with_its_classes(generate: Any, generator: str) -> None:
    assert generate("--generator", generator, "--classes", "2,0", "--per_class", "2", "--out", "there") == 0
    table = open_splits("there")["train"]
    assert table.features["label"].names == ["0000-blue", "0002-red"]
    assert [Path(cell["path"]).name for cell in table["image"]] == ["000002.png", "000003.png", "000000.png", "000001.png"]
    assert generate("--generator", generator, "--per_class", "2", "--out", "plain") == 0
    assert sorted(path.name for path in Path("plain").iterdir()) == ["000000.png", "000001.png"]


def test_seed_and_class_matter(generate: Any, generator: str) -> None:
    found = []
    for number, options in enumerate((["0"], ["0"], ["1"], ["0", "--seed", "1"])):
        generate("--generator", generator, "--per_class", "1", "--out", f"{number}.npz", "--classes", *options)
        found.append(np.load(f"{number}.npz")["arr_0"].astype(int))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "3"], "class '3': there are 0 to 2, or by name blue, green, red"),
        (["--classes", "pink"], "class 'pink': there are 0 to 2"),
        (["--guidance", "2"], "guidance 2.0: it needs classes to guide to, and none of the 3 is given"),
        (["--sampler", "ddpm"], "sampler ddpm: this generator learned by flow: choose euler or heun"),
        (["--sampler", "magic"], "sampler"),
        (["--per_class", "0"], "per_class 0: expected 1 or more"),
        (["--per_class", "2000"], "too many for a grid"),
        (["--interval", "[0.5, 0.1]"], "interval"),
        (["--encoder", "nowhere"], "nowhere: no such file or directory"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    generate: Any, generator: str, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert generate("--generator", generator, "--out", "grid.png", *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("huvr: error: ")
    assert message in error
    assert not Path("grid.png").exists()


def test_where_pictures_cannot_be_written_is_said_before_they_are_drawn(
    generate: Any, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("full.v2", "x.png", "x.npz"):
        Path(name).mkdir()
    Path("full.v2/there").touch()
    for out, message in (
        ("full.v2", "full.v2 exists already: choose a new or empty folder"),
        ("x.png", "x.png is a folder already: choose a .png file"),
        ("x.npz", "x.npz is a folder already: choose a .npz file"),
        ("grid.jpg", "out grid.jpg: .jpg files are not written; choose a .png or .npz file, or a folder"),
    ):
        assert generate("--generator", "never looked for", "--out", out) == 2
        assert message in capsys.readouterr().err
    assert not Path("grid.jpg").exists()


def test_classes_of_a_generator_that_knows_none(
    generate: Any, learn: Callable[..., Any], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ModelCheckpoint("plain/checkpoints", "last", monitor=None)
    learn(next((pictures / "train").iterdir()), enable_checkpointing=True, callbacks=[kept])
    for options, message in (
        (["--classes", "0"], "this generator knows none"),
        (["--guidance", "2"], "knows none: leave it at 1"),
    ):
        assert generate("--generator", "plain", "--out", "grid.png", *options) == 2
        assert message in capsys.readouterr().err
    assert generate("--generator", "plain", "--per_class", "2", "--out", "grid.png") == 0


def test_in_bf16_the_pictures_are_nearly_the_same(generate: Any, generator: str) -> None:
    for precision in ("fp32", "bf16"):
        options = ("--classes", "0,1,2", "--per_class", "1", "--precision", precision, "--out", f"{precision}.npz")
        assert generate("--generator", generator, *options) == 0
    exact, rounded = (np.load(f"{precision}.npz")["arr_0"].astype(int) for precision in ("fp32", "bf16"))
    assert 0 < abs(exact - rounded).mean() < 4


def test_what_is_there_stays(generate: Any, generator: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--generator", generator, "--out", "pictures") == 2
    assert "pictures exists already" in capsys.readouterr().err


OTHERS = {"decoder", "cifar_encoder"}  # which are no generators
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OTHERS)
SMALL = {
    "model.dit.depth": 1, "model.dit.width": 32, "model.dit.heads": 2, "model.pictures_every": 1, "data.root": "pictures",
    "data.size": 32, "data.batch_size": 4, "data.workers": 0, "data.cache": "latents", "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1, "trainer.limit_train_batches": 2, "trainer.log_every_n_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_two_steps_and_a_picture(name: str, pictures: Path, encoder: str, generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huvr.tasks.generation.module.PICTURED", 1)
    changes = SMALL | {"model.encoder": encoder, "model.guidance": 1}
    if "dit" in name:
        changes["model.pictures_every"] = 0  # 250 steps each
    assert cli.main(["fit", "--config", f"generate/{name}.yaml", *(f"--{key}={value}" for key, value in changes.items())]) == 0
    assert torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert generate("--generator", f"runs/{name}", "--classes", "0", "--per_class", "2", "--out", f"{name}.png") == 0


def test_two_steps_of_the_encoder_for_small_pictures(pictures: Path) -> None:
    """At its own size, since it is small; its grid is of 8×8 TinToks."""
    changes = {name: SMALL[name] for name in ("data.root", "data.batch_size", "trainer.accelerator", "trainer.max_epochs")}
    changes |= {"data.epoch_size": 8}
    assert (
        cli.main(["fit", "--config", "generate/cifar_encoder.yaml", *(f"--{key}={value}" for key, value in changes.items())]) == 0
    )
    assert torch.load("runs/cifar_encoder/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    model = huvr.load("runs/cifar_encoder")
    assert model.compress(model.encode(torch.rand(1, 3, 32, 32))).patches.shape == (1, 64, 8)


@pytest.mark.parametrize("name", SHIPPED)
def test_full_size(name: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model")
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    config["init_args"]["encoder"] = "net"
    module = parser.instantiate_classes(parser.parse_object({"model": config})).model
    with torch.device("meta"):
        net = DiT(module.config, (16, 16), 32, 1000, module.objective.outputs, module.global_token)
    found = sum(parameter.numel() for parameter in net.parameters())
    if name in ORIGINAL:
        original, width = ORIGINAL[name]
        assert found == original + 33 * width + 64 * (width + 1)
    else:
        assert found == by_hand(module.config.depth, module.config.width)


def by_hand(depth: int, width: int) -> int:
    """SwiGLU of 8/3, one answer per number."""
    hidden = 8 * width // 3
    mlp = width * 2 * hidden + 2 * hidden + hidden * width + width
    block = (3 * width**2 + 3 * width) + (width**2 + width) + mlp + 6 * width * (width + 1)
    time, label = 256 * width + width + width * (width + 1), 1001 * width
    ends = 2 * (32 * width + width) + 2 * 32 * (width + 1) + 2 * width * (width + 1)
    return depth * block + time + label + ends


@pytest.mark.parametrize("name", [*SHIPPED, "cifar_encoder"])
def test_the_header_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    header = "".join(line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines(keepends=True) if line.startswith("#"))
    for words in (f"huvr fit --config generate/{name}.yaml", "Hardware: ", "Time: ", "Metric: "):
        assert words in header
