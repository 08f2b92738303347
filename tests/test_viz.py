from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from huvr.errors import HuvrError
from huvr.model import Tokens
from huvr.viz import ERROR_GAIN, GAP, HEAT, panel, pca_map, save_png, token_tile


def random_tokens(batch: int, grid: tuple[int, int], dim: int) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(5, 1, dim)  # unequal variances, so that the components are well defined
    patches = torch.randn(batch, grid[0] * grid[1], dim, generator=generator) * spread + 3
    return Tokens(patches.mean(1), patches, grid)


def test_pca_is_the_svd_of_all_patches_of_the_batch() -> None:
    tokens = random_tokens(3, (5, 7), 11)
    flat = tokens.patches.double().numpy().reshape(-1, 11)
    flat = flat - flat.mean(0)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    axes = axes[:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
    scores = flat @ axes.T
    low, high = np.percentile(scores, [2, 98], axis=0)
    expected = ((scores - low) / (high - low)).clip(0, 1).reshape(3, 5, 7, 3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pca_map(tokens).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2])
def test_pca_of_tokens_with_fewer_than_three_numbers(dim: int) -> None:
    colours = pca_map(random_tokens(2, (4, 4), dim))
    assert colours.shape == (2, 3, 4, 4)
    assert colours[:, :dim].amax() == 1
    assert colours[:, dim:].abs().amax() == 0


def test_pca_of_equal_tokens_is_finite() -> None:
    assert pca_map(Tokens(torch.ones(1, 8), torch.ones(1, 4, 8), (2, 2))).isfinite().all()


def test_token_tile_is_one_square_per_patch_cut_to_the_image() -> None:
    tokens = random_tokens(1, (2, 3), 8)
    tile = token_tile(tokens, (20, 40), patch=16)
    colours = pca_map(tokens)
    assert tile.shape == (1, 3, 20, 40)
    for y, x in [(0, 0), (15, 15), (16, 16), (19, 39), (0, 31), (0, 32)]:
        assert torch.equal(tile[0, :, y, x], colours[0, :, y // 16, x // 16])
    assert torch.equal(token_tile(tokens, (32, 48)), token_tile(tokens, (32, 48), patch=16))


def test_panel_places_the_tiles() -> None:
    height, width = 32, 48
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    reconstructions = images.clone()
    reconstructions[1] = 1.5  # clamped for display
    picture = panel(images, reconstructions, random_tokens(2, (2, 3), 8))
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 2 * height + GAP, 4 * width + 3 * GAP)

    def tile(row: int, column: int) -> torch.Tensor:
        top, left = row * (height + GAP), column * (width + GAP)
        return picture[:, top : top + height, left : left + width]

    for row in (0, 1):
        assert torch.equal(tile(row, 0), (images[row] * 255).round().to(torch.uint8))
    assert torch.equal(tile(0, 1), tile(0, 0))
    assert (tile(1, 1) == 255).all()
    assert (tile(0, 2) == 0).all()  # no error, black
    assert (picture[:, height : height + GAP] == 255).all()
    assert (picture[:, :, width : width + GAP] == 255).all()


@pytest.mark.parametrize("step", range(5))
def test_error_colours(step: int) -> None:
    image = torch.full((1, 3, 16, 16), 0.5)
    error = step / 4 / ERROR_GAIN
    shifted = image + torch.tensor([error, -error, error]).view(1, 3, 1, 1)  # the sign does not matter
    colour = panel(image, shifted, random_tokens(1, (1, 1), 4))[:, 8, 2 * (16 + GAP) + 8]
    assert torch.equal(colour, (HEAT[step] * 255).round().to(torch.uint8))


def test_error_colours_get_brighter_evenly() -> None:
    linear = torch.where(HEAT <= 0.04045, HEAT / 12.92, ((HEAT + 0.055) / 1.055) ** 2.4)  # sRGB to light (IEC 61966-2-1)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722])
    lightness = torch.where(luminance > 0.008856, 116 * luminance ** (1 / 3) - 16, 903.3 * luminance)  # CIE L*
    torch.testing.assert_close(lightness, torch.tensor([0.0, 25, 50, 75, 100]), atol=8, rtol=0)


def test_save_png_writes_what_it_was_given(tmp_path) -> None:
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_png(picture, tmp_path / "new" / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), picture.permute(1, 2, 0).numpy())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_save_png_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HuvrError, match="cannot write"):
        save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "file" / "a.png")
