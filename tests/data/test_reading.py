"""Files to upright RGB pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from huvr.data import list_images, read_image
from huvr.errors import HuvrError


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "png"} | options))
    return buffer.getvalue()


def pixels(source: bytes | Path) -> list[list[list[int]]]:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def row(mode: str, *colours: object) -> Image.Image:
    image = Image.new(mode, (len(colours), 1))
    image.putdata(colours)
    return image


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = row("P", *range(len(colours)))
    image.putpalette([value for colour in colours for value in colour])
    return image


def test_images_are_listed_sorted_at_any_depth_without_hidden_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("c.PNG", "b/deep/x.jpeg", "b/a.tif", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == ["b/a.tif", "b/deep/x.jpeg", "c.PNG"]


def test_hidden_folders_and_links_to_where_the_walk_came_from_are_passed_over(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    for name in (root / "cat" / "a.png", root / ".ipynb_checkpoints" / "a.png", other / "b.png"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.touch()
    for link, target in {"cat/self": root / "cat", "cat/up": root, "cat/above": tmp_path, "linked": other}.items():
        (root / link).symlink_to(target)
    assert [path.relative_to(root).as_posix() for path in list_images(root)] == ["cat/a.png", "linked/b.png"]


def test_a_missing_folder_and_one_without_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(HuvrError, match=r"nowhere: no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(HuvrError, match=r"no images in this folder .*\.png"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (saved(row("RGB", (1, 2, 3))), [[1, 2, 3]]),
        (saved(row("L", 0, 100)), [[0] * 3, [100] * 3]),
        (saved(row("1", 0, 255)), [[0] * 3, [255] * 3]),
        # 65535 is white, which makes 257 of the 16-bit steps one of the 8-bit ones.
        (saved(Image.fromarray(np.array([[0, 257, 25700, 65535]], np.uint16))), [[0] * 3, [1] * 3, [100] * 3, [255] * 3]),
        (saved(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)), format="tiff"), [[0] * 3, [51] * 3, [255] * 3]),
        # over white: alpha · colour + (1 − alpha) · 255
        (saved(row("RGBA", (9, 9, 9, 0), (9, 8, 7, 255), (0, 100, 255, 51))), [[255] * 3, [9, 8, 7], [204, 224, 255]]),
        (saved(row("LA", (0, 0), (50, 255))), [[255] * 3, [50] * 3]),
        (saved(row("L", 0, 80), transparency=80), [[0] * 3, [255] * 3]),
        (saved(palette((255, 0, 0), (0, 0, 255)), transparency=1), [[255, 0, 0], [255] * 3]),
        (
            saved(row("CMYK", (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0)), format="tiff"),
            [[0, 255, 255], [255, 0, 255], [0, 0, 0], [255, 255, 255]],
        ),
    ],
    ids=["RGB", "grey", "1 bit", "16 bit", "float", "RGBA", "LA", "grey with transparency", "palette", "CMYK"],
)
def test_every_mode_becomes_rgb(content: bytes, expected: list[list[int]]) -> None:
    assert pixels(content) == [expected]


def test_a_cmyk_photograph_in_jpeg_keeps_its_colours() -> None:
    content = saved(Image.new("RGB", (16, 16), (200, 60, 20)).convert("CMYK"), format="jpeg", quality=100)
    np.testing.assert_allclose(np.asarray(read_image(content)), np.broadcast_to([200, 60, 20], (16, 16, 3)), atol=4)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [["red", "blue"]]),
        (3, [["blue", "red"]]),  # upside down
        (6, [["red"], ["blue"]]),  # to be turned clockwise
        (8, [["blue"], ["red"]]),
    ],
)
def test_the_rotation_that_a_camera_noted_is_applied(orientation: int, expected: list[list[str]]) -> None:
    colours = {"red": [255, 0, 0], "blue": [0, 0, 255]}
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(row("RGB", (255, 0, 0), (0, 0, 255)), exif=exif)
    assert pixels(content) == [[colours[name] for name in line] for line in expected]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    first, second = (Image.new("RGB", (2, 1), colour) for colour in ("white", "black"))
    content = saved(first, format="gif", save_all=True, append_images=[second])
    assert pixels(content) == [[[255] * 3, [255] * 3]]


def test_unreadable_files_are_errors_that_name_them(tmp_path: Path) -> None:
    whole = saved(Image.effect_noise((64, 64), 50))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "text.jpg", "empty.png"):
        with pytest.raises(HuvrError, match=rf"^\S*{name}: not a readable image \(.+\)$"):
            read_image(tmp_path / name)
    with pytest.raises(HuvrError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(HuvrError, match=r"^row 3: not a readable image"):
        read_image(b"", "row 3")


@pytest.mark.parametrize(
    "numbers", [np.array([[0, 255]], np.float32), np.array([[0, np.nan]], np.float32), np.array([[-1, 2**20]])]
)
def test_grey_of_an_unknown_range_is_an_error(numbers: np.ndarray) -> None:
    content = saved(Image.fromarray(numbers if numbers.dtype == np.float32 else numbers.astype(np.int32)), format="tiff")
    with pytest.raises(HuvrError, match=r"not a readable image \(grey from .* to .*: expected 0 to (1|65535)\)"):
        read_image(content)
