"""The cache of features: what comes out is what went in, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from huvr.errors import HuvrError
from huvr.tasks import cache
from huvr.tasks.cache import Entry

KEY: dict[str, Any] = {"encoder": "abc", "view": "224"}
FEATURES = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float16)
LABELS = np.arange(10) % 3


def pieces() -> list[Entry]:
    return [Entry(FEATURES[:7], LABELS[:7]), Entry(FEATURES[7:], LABELS[7:])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache with one entry, made for two images more than could be read."""
    cache.store(tmp_path / "cache", KEY, 12, pieces())
    return tmp_path / "cache"


def test_features_come_back_as_a_map_of_the_file(folder: Path) -> None:
    entry = cache.find(folder, KEY)
    assert entry is not None
    assert isinstance(entry.features, np.memmap)
    assert entry.features.dtype == np.float16
    assert np.array_equal(entry.features, FEATURES)
    assert np.array_equal(entry.labels, LABELS)


@pytest.mark.parametrize("other", [{"encoder": "abd"}, {"view": "256"}, {"more": 1}])
def test_another_key_is_another_entry(folder: Path, other: dict[str, Any]) -> None:
    assert cache.find(folder, KEY | other) is None


def test_an_entry_of_an_older_version_is_stale(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert cache.find(folder, KEY) is None


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def blank(file: Path) -> None:
    """The right length, but the end is zeros, as after a power cut."""
    file.write_bytes(file.read_bytes()[:-40] + bytes(40))


@pytest.mark.parametrize("damage", [cut, empty, blank, Path.unlink])
@pytest.mark.parametrize("suffix", [".npy", ".labels.npy", ".json"])
def test_a_torn_entry_is_not_used_and_can_be_written_again(folder: Path, damage: Any, suffix: str) -> None:
    (description,) = folder.glob("*.json")
    damage(description.with_suffix("").with_suffix(suffix) if suffix != ".json" else description)
    assert cache.find(folder, KEY) is None
    cache.store(folder, KEY, 10, pieces())
    entry = cache.find(folder, KEY)
    assert entry is not None
    assert np.array_equal(entry.features, FEATURES)


def test_a_description_of_another_key_is_not_believed(folder: Path) -> None:
    (description,) = folder.glob("*.json")
    description.write_text(description.read_text().replace("abc", "abd"))
    assert cache.find(folder, KEY) is None


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield pieces()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.store(tmp_path / "cache", KEY, 10, broken())
    assert not (tmp_path / "cache").exists()


def test_what_breaks_off_spares_the_entry_of_another_key(folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(HuvrError, match="leave the range of float16"):
        cache.store(folder, KEY | {"view": "256"}, 10, [Entry(FEATURES * np.float16(np.inf), LABELS)])
    assert sorted(folder.iterdir()) == before
