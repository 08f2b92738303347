"""The real photographs inside scikit-image's package: the data set that needs no download.

All are in the public domain or CC0, as scikit-image's documentation of each states.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from huvr.errors import HuvrError

# The two motorcycles are a stereo pair, one scene: they stay on one side.
TRAIN = (
    "astronaut.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "motorcycle_right.png",
    "retina.jpg", "brick.png", "camera.png", "coins.png", "grass.png", "gravel.png",
)  # fmt: skip
HELD_OUT = ("chelsea.png", "rocket.jpg")

CROPS_PER_EPOCH = 2048


def paths() -> dict[str, list[Path]]:
    """The files of both splits, "train" and "validation"."""
    folder = Path(str(files("skimage") / "data"))
    splits = {"train": [folder / name for name in TRAIN], "validation": [folder / name for name in HELD_OUT]}
    if missing := [path.name for side in splits.values() for path in side if not path.is_file()]:
        raise HuvrError(f"photos: this scikit-image lacks {', '.join(missing)}; reinstall it or choose another data root")
    return splits
