"""Sources of images that the tests of the data share."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from known_images import write_pack
from PIL import Image


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``datasets`` converts goes to the test's own folder, and a pass through a stream does not end with a rest."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 pictures in which any two crops differ."""
    folder, generator = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(13):
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Parquet files: 4 for training with the pictures 0 to 15, 1 for validation with 100 to 102."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        write_pack(folder / f"train-{shard}.parquet", range(4 * shard, 4 * shard + 4))
    write_pack(folder / "validation-0.parquet", range(100, 103))
    return folder
