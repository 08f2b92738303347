"""Masks by hand and by their statistics, and the masked autoencoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_hypernets import pictures, tiny

from huvr.errors import HuvrError
from huvr.hypernets.mae import MAE
from huvr.hypernets.masking import Masking, MaskKind, hide, masked_psnr


def drawings(kind: MaskKind, ratio: float, count: int = 200, rows: int = 14, columns: int = 14) -> np.ndarray:
    masking = Masking(ratio, 13, kind)
    return np.stack([masking.cells(rows, columns, np.random.default_rng(seed)) for seed in range(count)])


def test_random_cells_are_independent_with_the_given_probability() -> None:
    hidden = drawings("random", 0.75, 2000)
    assert hidden.mean() == pytest.approx(0.75, abs=0.003)  # 392,000 drawings: a deviation of 0.0007
    assert np.abs(hidden.mean(0) - 0.75).max() < 0.05  # no place is preferred
    counts = hidden.sum((1, 2))
    assert counts.std() == pytest.approx(math.sqrt(196 * 0.75 * 0.25), rel=0.1)  # binomial, not a fixed share


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.6, 0.75, 0.9, 0.99, 0.999])
@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (3, 11), (1, 1), (12, 2)])
def test_a_block_is_one_rectangle_of_exactly_the_share(ratio: float, rows: int, columns: int) -> None:
    places = set()
    for cells in drawings("block", ratio, 40, rows, columns):
        assert cells.sum() == round(ratio * rows * columns)
        if cells.any():
            down, across = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
            box = cells[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
            assert box[:, :-1].all()  # but for its last column
            places.add((down[0], across[0]))
    if (rows, columns, ratio) == (14, 14, 0.5):
        assert len(places) > 10


def test_a_grid_leaves_one_cell_of_each_square_of_four() -> None:
    for cells in drawings("grid", 0.75, 40):
        squares = cells[:14, :14].reshape(7, 2, 7, 2).sum((1, 3))
        assert (squares == 3).all()
    chequered = drawings("grid", 0.5, 1)[0]
    assert (chequered[:-1] != chequered[1:]).all()
    assert (chequered[:, :-1] != chequered[:, 1:]).all()
    for ratio in (0.25, 0.6, 0.9):
        assert drawings("grid", ratio).mean() == pytest.approx(ratio, abs=0.01)


def test_masks_cover_whole_cells_and_follow_from_their_seeds() -> None:
    masking, images = Masking(0.5, 3), torch.rand(4, 3, 8, 10)
    mask = masking.masks(images, [5, 6, 7, 5])
    assert mask.shape == (4, 1, 8, 10)
    assert torch.equal(mask[0], mask[3])
    assert not torch.equal(mask[0], mask[1])
    cells = masking.cells(3, 4, np.random.default_rng(6))  # 8 × 10 pixels are 3 × 4 cells, the last ones smaller
    for row in range(8):
        for column in range(10):
            assert mask[1, 0, row, column] == cells[row // 3, column // 3]
    seen = hide(images, mask)
    assert (seen.movedim(1, -1)[mask[:, 0]] == 0).all()
    assert torch.equal(torch.where(mask, images, seen), images)


def test_psnr_of_hidden_pixels_by_hand() -> None:
    images, painted = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    painted[0, :, 0, 0] = torch.tensor([0.1, 0.2, 0.3])
    painted[0, :, 1, 1] = 0.9  # visible: does not count
    mask = torch.tensor([[True, True], [False, False]]).expand(1, 1, 2, 2).repeat(2, 1, 1, 1)
    mask[1] = False
    found = masked_psnr(painted, images, mask)
    assert found[0] == pytest.approx(-10 * math.log10((0.01 + 0.04 + 0.09) / 3 / 2))
    assert found[1].isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, "masking ratio 1.0: expected 0 to below 1"),
        ({"ratio": -0.1}, "masking ratio -0.1"),
        ({"ratio": math.nan}, "masking ratio nan"),
        ({"cell": 0}, "masking cell 0: expected 1 pixel or more"),
        ({"kind": "stripes"}, "masking kind 'stripes': choose one of random, block, grid"),
    ],
)
def test_masks_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        Masking(**arguments)  # type: ignore[arg-type]


def test_an_image_smaller_than_a_cell() -> None:
    with pytest.raises(HuvrError, match="images of 16x12 pixels are smaller than a masking cell of 13"):
        Masking().masks(torch.rand(1, 3, 16, 12), [0])


def masks(*hidden: list[int]) -> torch.Tensor:
    """Of images of 4 × 4 patches of 4 pixels; the patches named are hidden."""
    patches = torch.zeros(len(hidden), 16, dtype=torch.bool)
    for row, numbers in zip(patches, hidden, strict=True):
        row[numbers] = True
    return patches.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)


@torch.no_grad()
def test_the_encoder_sees_visible_patches_only() -> None:
    net = tiny("MAE")
    images, mask = pictures(2), masks([0, 1, 2, 3, 4, 5, 9], [7])
    other = torch.where(mask, torch.rand_like(images), images)
    torch.testing.assert_close(net.render(net.encode(images, mask)), net.render(net.encode(other, mask)))
    assert isinstance(net, MAE)
    for image in range(2):  # the surplus of an image with fewer visible patches changes nothing
        alone = net.encode(images[image : image + 1], mask[image : image + 1])
        torch.testing.assert_close(net.encode(images, mask).tensors[0][image], alone.tensors[0][0], rtol=1e-4, atol=1e-5)
    everything = masks([*range(16)], [*range(16)])
    assert net.render(net.encode(images, everything)).isfinite().all()


@torch.no_grad()
def test_its_picture_and_its_loss_are_of_hidden_patches() -> None:
    net = tiny("MAE")
    images, mask = pictures(2), masks([0, 5], [7])
    seen = hide(images, mask)
    painted = net.render(net.encode(seen, mask))
    found = net.reconstruct(seen, mask=mask)
    assert torch.equal(found, torch.where(mask, painted, images))
    patches = [(0, 0, 0), (0, 4, 4), (1, 4, 12)]  # image, first row, first column
    errors = [(2 * (painted - images)[i, :, r : r + 4, c : c + 4]).square().mean() for i, r, c in patches]
    torch.testing.assert_close(net.loss(painted, images, mask), torch.stack(errors).mean())
    sequence = net.encode(seen, mask).tensors[0]
    torch.testing.assert_close(sequence[0, 1 + 5], net.mask_token[0, 0])
    values = net.to_pixels(net.decoder(sequence + torch.nn.functional.pad(table(), (0, 0, 1, 0))))[1, 1 + 7]
    torch.testing.assert_close(painted[1, :, 4:8, 12:16], values.view(3, 4, 4) / 2 + 0.5)


def table() -> torch.Tensor:
    """Sine positions of 4 × 4 patches, number by number: ``(1, 16, 16)``."""
    rows = [
        [f(place / 10000 ** (k / 4)) for f in (math.sin, math.cos) for place in (row, column) for k in range(4)]
        for row in range(4)
        for column in range(4)
    ]
    return torch.tensor(rows)[None]


def test_what_mae_cannot_do() -> None:
    net, images, mask = tiny("MAE"), pictures(), masks([1], [2])
    for ask, message in (
        (lambda: net.reconstruct(images), "MAE paints hidden patches only: it needs a mask"),
        (lambda: net.reconstruct(images, mask=mask, scale=2), "pixels of its own size only"),
        (lambda: net.query(net.encode(images, mask), torch.zeros(1, 1, 2)), "cannot be asked at coordinates"),
        (lambda: net.tokens(images[..., :15]), "images of 16x15 pixels: MAE takes multiples of its patch of 4"),
        (lambda: MAE(width=30, heads=4), "width 30, heads 4: expected a multiple"),
    ):
        with pytest.raises(HuvrError, match=message):
            ask()


def test_mae_is_about_as_large_as_transinr() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in MAE().parameters())
    layer = [4 * w + 4 * w * w + 4 * w + 8 * w * w + 5 * w for w in (768, 512)]  # norms, attention, MLP
    ends = 507 * 768 + 768 + 768 + 2 * 768 + 768 * 512 + 512 + 512 + 2 * 512 + 512 * 507 + 507
    assert count == 5 * layer[0] + 3 * layer[1] + ends
    assert count == pytest.approx(44.5e6, rel=0.05)
