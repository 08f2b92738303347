"""The task on masked images: its figures against a plain loop, and what it refuses."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

import huvr
from huvr.cli import main
from huvr.commands import tasks
from huvr.data import Images
from huvr.data.samples import Rows, seed_of
from huvr.errors import HuvrError
from huvr.hypernets.masking import Masking
from huvr.tasks.base import EncoderConfig
from huvr.tasks.minr import MINR, Domains

CONFIG = Path(__file__).parents[2] / "configs" / "probe" / "minr.yaml"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two data sets of held-out pictures, bright and dark ones of 24 pixels."""
    generator, found = np.random.default_rng(0), []
    for name, most in (("bright", 256), ("dark", 64)):
        for split, count in (("train", 1), ("val", 5)):
            (tmp_path / name / split).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, most, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / split / f"{number}.png")
        found.append(tmp_path / name)
    return found[0], found[1]


def quiet() -> Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", **off)  # type: ignore[arg-type]


def read(folder: Path) -> torch.Tensor:
    images = [pil_to_tensor(Image.open(path)) for path in sorted((folder / "val").glob("*.png"))]
    return torch.stack([center_crop(image, [24, 24]) for image in images]).float() / 255


@torch.no_grad()
def plainly(encoder: str, images: torch.Tensor, kind: str, ratio: float) -> tuple[float, float]:
    """Mean PSNR of whole images and of hidden pixels, image by image in numpy."""
    model, whole, hidden = huvr.load(encoder), [], []
    for number, image in enumerate(images):
        cells = Masking(ratio, 6, kind).cells(4, 4, np.random.default_rng(seed_of("minr", 0, kind, str(ratio), number)))  # type: ignore[arg-type]
        mask = np.kron(cells, np.ones((6, 6), bool))
        seen = np.where(mask, 0, image.numpy()).astype(np.float32)
        squares = (model.reconstruct(torch.from_numpy(seen)[None])[0].numpy() - image.numpy()).astype(np.float64) ** 2
        whole.append(-10 * np.log10(squares.mean()))
        if mask.any():
            hidden.append(-10 * np.log10(squares[:, mask].mean()))
    return float(np.mean(whole)), float(np.mean(hidden))


@pytest.mark.parametrize("batch_size", [2, 5])
def test_figures_are_those_of_a_plain_loop_whatever_the_batch(
    encoder: str, folders: tuple[Path, Path], batch_size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "find", lambda name: EntryPoint(name, "huvr.tasks.minr:MINR", tasks.GROUP))
    monkeypatch.setattr(tasks, "package", lambda entry: "huvr")
    options = {
        "data.root": folders[0], "data.other": folders[1], "data.size": 24, "data.batch_size": batch_size, "data.workers": 0,
        "model.ratios": "[0.5, 0.125]", "model.kinds": "[random, block]", "model.cell": 6, "run": "there",
        "trainer.accelerator": "cpu",
    }  # fmt: skip
    arguments = [f"--{key}={value}" for key, value in options.items()]
    assert main(["probe", "--task", "minr", "--encoder", encoder, *arguments]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert len(record["metrics"]) == 2 * 2 * 2 * 2
    for prefix, folder in (("", folders[0]), ("other/", folders[1])):
        for kind in ("random", "block"):
            for ratio, name in ((0.5, "50"), (0.125, "12p5")):
                whole, hidden = plainly(encoder, read(folder), kind, ratio)
                assert record["metrics"][f"{prefix}psnr_{kind}_{name}"] == pytest.approx(whole, abs=1e-3)
                assert record["metrics"][f"{prefix}hidden_{kind}_{name}"] == pytest.approx(hidden, abs=1e-3)
    assert record["bytes_per_image"] == 2 * (1 + 9) * 8  # TinToks of 3 × 3 patches and the global one, in fp16
    assert record["tokens"] == "tintok"
    assert record["data"] == {"test": f"{folders[0]}, middle 24", "other": f"{folders[1]}, middle 24"}


def test_without_other_data_there_is_one_set(encoder: str, folders: tuple[Path, Path]) -> None:
    task = MINR(EncoderConfig(encoder), ratios=(0.5,), kinds=("grid",), cell=6)
    (found,) = quiet().test(task, datamodule=Domains(str(folders[0]), size=24, workers=0), verbose=False)
    assert found.keys() == {"psnr_grid_50", "hidden_grid_50"}


def test_what_is_given_back_unchanged_leaves_the_means_finite(folders: tuple[Path, Path]) -> None:
    task = MINR(EncoderConfig("huvr-tiny"), ratios=(0.0,), kinds=("random",), cell=6)
    task.net.reconstruct = lambda seen, mask: seen  # type: ignore[method-assign]
    (found,) = quiet().test(task, datamodule=Domains(str(folders[0]), size=24, workers=0), verbose=False)
    assert found == {"psnr_random_0": 100.0}


def test_of_data_without_a_held_out_split_the_share_is_that_of_the_training(folders: tuple[Path, Path]) -> None:
    data = Domains(str(folders[0] / "val"), held_out=0.5, size=24, workers=0)
    data.setup()
    trained = Images(str(folders[0] / "val"), held_out=0.5)
    trained.setup()
    assert isinstance(trained.val_rows, Rows)
    assert isinstance(data.sets[0].val_rows, Rows)
    assert data.sets[0].val_rows.numbers.tolist() == trained.val_rows.numbers.tolist()
    assert len(trained.val_rows) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": {"tokens": "tintok"}}, "the task minr measures pictures, not tokens"),
        ({"encoder": {"source": "timm:test_vit"}}, "encoder timm:test_vit: a network of timm paints nothing"),
        ({"ratios": (0.5, 1.0)}, "masking ratio 1.0: expected 0 to below 1"),
        ({"kinds": ()}, "ratios, kinds: expected one or more of each"),
    ],
)
def test_what_it_cannot_measure(encoder: str, options: dict[str, object], message: str) -> None:
    config = EncoderConfig(**({"source": encoder} | options.pop("encoder", {})))  # type: ignore[call-overload]
    with pytest.raises(HuvrError, match=message):
        MINR(config, **options)  # type: ignore[arg-type]


def test_it_needs_data() -> None:
    with pytest.raises(HuvrError, match="which data"):
        Domains()


def test_the_protocol_is_that_of_the_paper_and_beyond() -> None:
    settings = yaml.safe_load(CONFIG.read_text())
    init = settings["model"]["init_args"]
    assert (init["cell"], settings["data"]["init_args"]["size"]) == (13, 14 * 13)
    assert {0.5, 0.75, 0.9} <= {*init["ratios"]}
    assert init["kinds"] == ["random", "block", "grid"]
