"""Readers and searches that tell where a network loses what it does not draw."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from where_lost import LinearReader, inputs, squares


def test_squares_are_the_middle() -> None:
    picture = torch.arange(3 * 6 * 8, dtype=torch.uint8).view(3, 6, 8)
    (batch,) = squares([picture], 4)
    assert torch.equal(batch[0], picture[:, 1:5, 2:6] / 255)


def test_inputs_have_a_one_beside_each_patch_token() -> None:
    assert inputs(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).tolist() == [[[1, 2, 1], [3, 4, 1]]]


def test_the_linear_reader_is_exact_where_the_pixels_are_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=generator)

    def read(batch: torch.Tensor) -> torch.Tensor:
        patches = F.unfold(batch, 4, stride=4).transpose(1, 2)
        return torch.cat([patches.flip(2) * 3 - 1, torch.ones_like(patches[..., :1])], dim=2)

    reader = LinearReader(read, iter([images]), 4)
    assert torch.allclose(reader(images), images, atol=1e-2)
