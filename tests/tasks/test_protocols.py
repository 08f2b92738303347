"""The shipped protocols of the tasks: each runs by name, says what to expect, and holds the figures of its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from huvr.cli import main
from huvr.commands import tasks

CONFIGS = Path(__file__).parents[2] / "configs" / "probe"
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
VARIANTS = {"imagenet_released": "imagenet", "imagenet_logistic": "logistic"}  # other protocols, of which task
# Tasks on labelled images, with what the few images of a test ask for; the others run in tests of their own.
CHANGES = {
    "knn": ["--model.k", "[1]"],
    "logistic": [],
    "retrieval": ["--model.k", "[1]"],
    "imagenet": ["--data.batch_size", "6", "--model.rates", "[5]"],
    **{name: ["--data.test_split", "val"] for name in ("cars", "cub", "dtd", "flowers", "food")},
}


def shipped(name: str) -> Any:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def test_every_task_of_ours_has_its_protocol() -> None:
    ours = [name for name, entry in tasks.installed().items() if tasks.package(entry) == "huvr"]
    assert sorted([*ours, *VARIANTS]) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_it_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    for words in (f"huvr probe --task {VARIANTS.get(name, name)} ", "Hardware: ", "Time: ", "Metric: "):
        assert words in header
    entry = tasks.find(VARIANTS.get(name, name))
    assert shipped(name)["model"]["class_path"] == f"{entry.module}.{entry.attr}"


@pytest.mark.parametrize("name", CHANGES)
def test_it_runs_by_the_name_of_its_task(name: str, encoder: str, pictures: Path) -> None:
    small = ["--data.root", "pictures", "--data.resize", "34", "--data.crop", "32", "--data.workers", "0", "--run", "there"]
    assert main(["probe", "--task", name, "--encoder", encoder, *small, *CHANGES[name]]) == 0
    metrics = json.loads(Path("there/record.json").read_text())["metrics"]
    if name == "retrieval":
        assert metrics["recall@1"] == 100
    else:
        assert set(metrics.values()) == {100.0}  # the colours of the pictures are easily told apart


def test_k_nn_is_that_of_dino() -> None:
    assert shipped("knn")["model"]["init_args"] == {"k": [10, 20, 100, 200], "temperature": 0.07}
    assert shipped("knn")["data"]["init_args"] == {"resize": 256, "crop": 224}


def test_logistic_regression_is_that_of_the_released_code() -> None:
    settings = shipped("logistic")
    assert settings["model"]["init_args"] == {"lr": 0.1, "inner_steps": 20}
    assert settings["data"]["init_args"] == {"resize": 320, "crop": 256}
    assert settings["trainer"]["max_epochs"] == 100
    stopping, keeping = (each["init_args"] for each in settings["trainer"]["callbacks"])
    assert stopping == {"monitor": "val/top1", "mode": "max", "patience": 10}
    assert (keeping["monitor"], keeping["mode"]) == ("val/top1", "max")


def test_logistic_regression_keeps_the_best_head_and_nothing_of_the_encoder(encoder: str, pictures: Path) -> None:
    test_it_runs_by_the_name_of_its_task("logistic", encoder, pictures)
    tensors = torch.load("there/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert tensors.keys() == {"head.weight", "head.bias"}
    assert json.loads(Path("there/record.json").read_text())["top1_per_class"] == {"blue": 100, "green": 100, "red": 100}
