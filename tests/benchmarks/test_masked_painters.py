"""What masked training is compared with, and the networks that are compared."""

from __future__ import annotations

import pytest
import torch
from minr import MEASURED, NETWORKS, biharmonic, mean_colour, measured

from huvr.hypernets.masking import hide


def test_the_mean_colour_is_that_of_what_is_seen() -> None:
    image = torch.tensor([[[[0.2, 0.4], [0.9, 0.6]], [[0.0, 1.0], [0.9, 0.5]], [[0.3, 0.3], [0.9, 0.3]]]])
    mask = torch.tensor([[[[False, False], [True, False]]]])
    drawn = mean_colour(hide(image, mask), mask)
    assert drawn[0, :, 1, 0].tolist() == pytest.approx([0.4, 0.5, 0.3])
    assert torch.equal(drawn.masked_fill(mask, 0), hide(image, mask))


def test_biharmonic_inpainting_continues_a_slope() -> None:
    slope = (torch.arange(24) / 24).expand(1, 3, 24, 24)
    mask = torch.zeros(1, 1, 24, 24, dtype=torch.bool)
    mask[..., 8:16, 8:16] = True
    assert torch.allclose(biharmonic(hide(slope, mask), mask), slope, atol=1e-3)


def test_a_perfect_painter_has_no_error_to_speak_of() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = measured(lambda seen, mask: images + 0.1, images)
    assert len(found) == len(MEASURED)
    assert {value for row in found.values() for value in row.values()} == {20.0}  # -20 log10 of 0.1


def test_the_networks_are_of_about_one_size() -> None:
    sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in NETWORKS.items()}
    assert max(sizes.values()) < 1.1 * min(sizes.values())
