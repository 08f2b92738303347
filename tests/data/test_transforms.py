"""Crops of pictures whose pixels say where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from huvr.data.transforms import centre_crop, random_crop, training_view

SIDE = 200


def coordinates(height: int, width: int) -> Image.Image:
    """Red is x, green is y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


@pytest.mark.parametrize(("height", "width"), [(40, 96), (96, 40), (40, 40)])
def test_the_middle_square_at_its_own_size_is_cut_out_exactly(height: int, width: int) -> None:
    image = coordinates(height, width)
    top, left = (height - 40) // 2, (width - 40) // 2
    expected = np.asarray(image)[top : top + 40, left : left + 40].transpose(2, 0, 1)
    crop = centre_crop(40)(image)
    assert crop.dtype == torch.uint8
    np.testing.assert_array_equal(crop.numpy(), expected)


def test_the_shorter_side_is_brought_to_the_size_first() -> None:
    crop = centre_crop(20)(coordinates(80, 240)).float()
    # A quarter of the scale: pixel centres 4 apart, the middle square begins at x = 80.
    np.testing.assert_allclose(crop[0, 10, 2:-2], 80 + 4 * np.arange(2, 18) + 1.5, atol=1)
    np.testing.assert_allclose(crop[1, 2:-2, 10], 4 * np.arange(2, 18) + 1.5, atol=1)


@pytest.mark.parametrize("crop", [centre_crop(16), random_crop((16, 16), (1.0, 1.0))])
def test_enlarged_stripes_do_not_alias(crop: object) -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    values = crop(Image.fromarray(stripes)).float()  # type: ignore[operator]
    assert (values - 127.5).abs().max() < 12


@pytest.mark.parametrize("size", [(40, 40), (20, 60), (60, 20)])
def test_random_crops_keep_to_the_area_and_aspect_asked_for(size: tuple[int, int]) -> None:
    crop, image = random_crop(size, (0.1, 0.3)), coordinates(SIDE, SIDE)
    shares, aspects, flips = [], [], 0
    torch.manual_seed(0)
    for _ in range(100):
        values = crop(image).float()
        assert values.shape == (3, *size)
        # Slope times pixels: what the crop spans, free of the rounding at its edges.
        across = float(values[0, :, -3].mean() - values[0, :, 2].mean()) / (size[1] - 5) * size[1]
        down = float(values[1, -3].mean() - values[1, 2].mean()) / (size[0] - 5) * size[0]
        flips += across < 0
        assert down > 0
        shares.append(abs(across) * down / SIDE**2)
        aspects.append(abs(across) / down / (size[1] / size[0]))
    assert 0.09 < min(shares) < 0.14
    assert 0.26 < max(shares) < 0.32
    assert 0.70 < min(aspects) < 0.85
    assert 1.18 < max(aspects) < 1.43
    assert 30 < flips < 70


def test_colours_change_as_strongly_as_asked_and_places_do_not() -> None:
    torch.manual_seed(0)
    picture = Image.new("RGB", (40, 40), (200, 60, 60))
    plain, strong = (random_crop((8, 8), (0.5, 1.0), colour) for colour in (0.0, 0.8))
    assert (plain(picture) == torch.tensor([200, 60, 60], dtype=torch.uint8).view(3, 1, 1)).all()
    views = torch.stack([strong(picture) for _ in range(20)]).float()
    assert views.dtype == torch.float32
    assert (views.std((2, 3)) < 1).all()  # one colour stays one colour
    assert (views.mean((2, 3)).std(0) > 10).all()


@pytest.mark.parametrize(("height", "width"), [(40, 96), (97, 53), (20, 31)])
def test_the_centre_in_training_is_what_validation_sees(height: int, width: int) -> None:
    image = coordinates(height, width)
    assert torch.equal(training_view((32, 32), "centre")(image), centre_crop(32)(image))
    assert training_view((24, 40), "centre")(image).shape == (3, 24, 40)


def test_a_native_crop_is_cut_out_as_it_is() -> None:
    torch.manual_seed(0)
    image, places, mirrored = coordinates(60, 90), set(), set()
    for _ in range(20):
        x, y, _ = training_view((40, 50), "native")(image).int()
        assert torch.equal(y, y[0, 0] + torch.arange(40)[:, None].expand(40, 50))
        steps = x.diff(dim=1).unique().tolist()
        assert steps in ([1], [-1])
        places.add((int(x.min()), int(y[0, 0])))
        mirrored.add(steps[0])
    assert len(places) > 10
    assert mirrored == {1, -1}
    assert max(x for x, _ in places) <= 40
    assert max(y for _, y in places) <= 20


def test_what_is_too_small_for_a_native_crop_is_enlarged_until_it_is_covered() -> None:
    x, y, _ = training_view((40, 40), "native")(coordinates(20, 60)).int()
    assert y[-1].min() - y[0].max() >= 17  # all of the height, 20 rows on 40
    assert abs(int(x[0, -1] - x[0, 0])) in range(18, 22)  # as much of the width
