"""Labelled pictures whose colour is their class, and a quiet trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_features import COLOURS
from lightning.pytorch import Trainer
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``pictures/`` in an empty working directory: three classes, six images each to learn from and two to be measured on."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(-20, 21, (40, 52, 3)) + np.array(colour)
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return Path("pictures")


@pytest.fixture
def quiet(tmp_path: Path) -> Any:
    """Makes trainers that write and say nothing."""

    def make(**options: Any) -> Trainer:
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        return Trainer(accelerator="cpu", default_root_dir=tmp_path, num_sanity_val_steps=0, **(off | options))

    return make
