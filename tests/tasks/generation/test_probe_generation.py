"""``huvr probe --task generation``: on real pictures in place of samples the answers are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import huvr
from huvr.cli import main
from huvr.data import read_image
from huvr.data.transforms import centre_crop
from huvr.tasks.generation.generator import Generator
from huvr.tasks.generation.measures import Eye
from huvr.tasks.generation.probe import DRAWN, UNSEEN
from huvr.tasks.generation.sampling import Sampling

Learn = Callable[..., Any]
MEASURES = {"frechet_test_vit", "precision_test_vit", "recall_test_vit", "inception_score_test_vit", "recognised"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    return str(file)


def trained(learn: Learn, root: Path, run: str = "run", **options: Any) -> None:
    kept = ModelCheckpoint(f"{run}/checkpoints", "last", monitor=None)
    learn(root, 2, enable_checkpointing=True, callbacks=[kept], **options)


@pytest.fixture
def probe(learn: Learn, pictures: Path, weights: str) -> Callable[..., int]:
    """Of a generator after two steps; ``generator`` is another one. Each takes the place of the one before."""
    trained(learn, pictures)

    def call(*arguments: str, generator: str = "run", root: str = "pictures") -> int:
        Path("there/record.json").unlink(missing_ok=True)
        data = ["--data.root", root, "--data.workers", "0", "--data.cache", "cache", "--data.batch_size", "4"]
        frechet = ["--model.frechet", f"{{network: test_vit, weights: {weights}}}", "--model.sampling.steps", "2"]
        small = ["--model.batch_size", "4", "--trainer.accelerator", "cpu", "--run", "there"]
        return main(["probe", "--task", "generation", "--generator", generator, *data, *frechet, *small, *arguments])

    return call


def record() -> dict[str, Any]:
    return json.loads(Path("there/record.json").read_text())


def training_pictures() -> Tensor:
    paths = sorted(Path("pictures/train").rglob("*.png"))
    return torch.stack([centre_crop(32)(read_image(path)) for path in paths])


def test_a_record_with_the_measures_of_samples_and_of_real_pictures(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    see = Eye.see
    monkeypatch.setattr(Eye, "see", lambda self, images: seen.append(len(images)) or see(self, images))
    assert probe() == 0
    found = record()
    assert found["metrics"].keys() == MEASURES
    assert {name: rival["metrics"].keys() for name, rival in found["rivals"].items()} == {UNSEEN: MEASURES, DRAWN: MEASURES}
    assert found["rivals"][UNSEEN]["metrics"]["recognised"] == 100  # colours are easily told apart
    assert found["rivals"][UNSEEN]["metrics"]["frechet_test_vit"] < found["metrics"]["frechet_test_vit"]
    assert (found["headline"], found["lower_is_better"], found["samples"]) == ("frechet_test_vit", True, 6)
    data = {"train": "pictures (train), 18 images", "test": "pictures (val), 6 images", "view": "middle 32"}
    assert found["data"] == data
    assert (found["sampling"]["sampler"], found["sampling"]["steps"], found["tokens"]) == ("euler", 2, "tintok")
    assert found["samples_per_second"] > 0
    assert Image.open("there/nearest.png").size == (8 * 34 + 2, 2 * 34 + 2)
    assert sum(seen) == 18 + 3 * 6
    seen.clear()
    assert probe("--model.samples", "9", "--data.test_images", "5") == 0
    assert sum(seen) == 2 * 5 + 9  # the training pictures' features lie on the disk
    assert record()["samples"] == 9
    seen.clear()
    assert probe("--model.beside", "false") == 0
    assert sum(seen) == 6
    assert record()["metrics"] == found["metrics"]
    assert (record()["rivals"], record()["data"].keys()) == ({}, {"train", "view"})


def test_a_generator_that_copies_is_found_out(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copies, asked = training_pictures(), []

    def pictures(self: Generator, count: int, labels: list[int], *_: Any, **__: Any) -> Iterator[Tensor]:
        asked.extend(labels)
        for number, label in enumerate(labels):
            yield copies[6 * label + number % 6] / 255  # six of each class

    monkeypatch.setattr(Generator, "pictures", pictures)
    assert probe("--model.samples", "18") == 0
    found = record()["metrics"]
    assert asked == [0] * 6 + [1] * 6 + [2] * 6  # the shares of the held-out pictures
    assert found["frechet_test_vit"] == pytest.approx(0, abs=1e-3)
    assert (found["precision_test_vit"], found["recall_test_vit"], found["recognised"]) == (100, 100, 100)
    grid = np.asarray(Image.open("there/nearest.png"))
    for number in range(18):
        row, column = divmod(2 * number, 8)
        pair = [grid[34 * row + 2 :, 34 * each + 2 :][:32, :32] for each in (column, column + 1)]
        assert np.array_equal(*pair)
        assert np.array_equal(pair[0], copies[number].permute(1, 2, 0))


def test_reconstructions_are_what_the_network_draws(probe: Any, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Tensor] = []
    see = Eye.see
    monkeypatch.setattr(Eye, "see", lambda self, images: batches.append(images) or see(self, images))
    assert probe() == 0
    originals, drawn = batches[-6], batches[-5]  # of the first of two batches of held-out pictures, before two of samples
    with torch.no_grad():
        expected = huvr.load(encoder).reconstruct(originals.float() / 255).clamp(0, 1) * 255
    assert (drawn.float() - expected).abs().max() <= 1


def test_another_decoder_draws(probe: Any, encoder: str) -> None:
    model = huvr.load(encoder)
    with torch.no_grad():
        for parameter in model.inr.parameters():
            parameter.mul_(0.5)
    model.save("other")
    assert probe() == 0
    before = record()["rivals"]
    assert probe("--model.decoder", "other") == 0
    after = record()["rivals"]
    assert before[UNSEEN] == after[UNSEEN]
    assert before[DRAWN] != after[DRAWN]


def test_pictures_without_labels(probe: Any, learn: Learn) -> None:
    for split in ("train", "val"):
        Path("flat", split).mkdir(parents=True)
        for number, path in enumerate(sorted(Path("pictures", split).rglob("*.png"))):
            shutil.copy(path, f"flat/{split}/{number:02d}.png")
    trained(learn, Path("flat"), "unconditional")
    assert probe(generator="unconditional", root="flat") == 0
    assert record()["metrics"].keys() == MEASURES - {"recognised"}


def test_unreadable_pictures_are_left_out_and_the_others_keep_their_labels(probe: Any) -> None:
    Path("pictures/train/blue/0.png").write_bytes(b"nothing")
    Path("pictures/val/blue/0.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="image skipped"):
        assert probe() == 0
    data = {"train": "pictures (train), 17 images", "test": "pictures (val), 5 images", "view": "middle 32"}
    assert record()["data"] == data
    assert record()["rivals"][UNSEEN]["metrics"]["recognised"] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generator", ""], "which generator? --generator with a run"),
        (["--generator", "nowhere"], "generator nowhere: no such file or folder"),
        (["--data.root", "nowhere/at/all"], "data root 'nowhere/at/all'"),
        (["--data.root", ""], "which data?"),
        (["--data.test_split", "dev"], "no split 'dev'"),
        (["--data.test_images", "3"], "3 other pictures: the manifold of 3 neighbours needs 4 or more"),
        (["--model.samples", "0"], "samples 0"),
        (["--model.sampling.sampler", "ddpm"], "sampler ddpm: this generator learned by flow"),
        (["--model.frechet", "{network: inception, weights: hub}"], "frechet.weights hub: no such file; inception needs"),
        (["--model.frechet", "{network: vit_huge}"], "no timm model"),
        (["--model.decoder", "nowhere"], "nowhere: no such file or directory"),
        (["--data", "huvr.tasks.pictures.Pictures"], "generation is measured on"),
        (["--encoder", "net"], "encoder"),
    ],
)
def test_mistakes_are_one_line(probe: Any, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    capsys.readouterr()
    assert probe(*options) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("huvr: error: ")
    assert message in line
    assert not Path("there/record.json").exists()


def test_data_of_other_classes(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        Path("pictures", split, "red").rename(Path("pictures", split, "pink"))
    assert probe() == 2
    expected = "pictures (train): 3 classes (blue, green, pink); the generator knows 3 classes (blue, green, red)"
    assert expected in capsys.readouterr().err


def test_held_out_pictures_without_labels(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for number, path in enumerate(sorted(Path("pictures/val").rglob("*.png"))):
        path.rename(f"pictures/val/{number}.png")
    for folder in ("blue", "green", "red"):
        Path("pictures/val", folder).rmdir()
    assert probe() == 2
    assert "pictures (val): 0 classes; the generator knows 3 classes" in capsys.readouterr().err


def test_guidance_needs_classes(probe: Any, learn: Learn, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/train").rename("train")
    shutil.copytree("pictures/val", "bare/val")
    Path("bare/train").mkdir()
    for number, path in enumerate(sorted(Path("train").rglob("*.png"))):
        shutil.copy(path, f"bare/train/{number:02d}.png")
    trained(learn, Path("bare/train"), "unconditional")
    assert probe("--model.sampling.guidance", "2", generator="unconditional", root="bare") == 2
    assert "this generator knows none: leave it at 1" in capsys.readouterr().err
    assert Sampling().guidance == 1
