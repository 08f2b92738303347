from __future__ import annotations

import pytest
import torch

from huvr.errors import HuvrError
from huvr.model import Tokens


def test_sequence_and_back() -> None:
    sequence = torch.arange(2 * 7 * 5.0).view(2, 7, 5)
    tokens = Tokens.from_sequence(sequence, (2, 3))
    assert tokens.dim == 5
    assert torch.equal(tokens.cls, sequence[:, 0])
    assert torch.equal(tokens.patches[:, 4], sequence[:, 5])
    assert torch.equal(tokens.sequence, sequence)


def test_map_is_row_major() -> None:
    tokens = Tokens(torch.zeros(1, 1), torch.arange(6.0).view(1, 6, 1), (2, 3))
    assert tokens.map.tolist() == [[[[0, 1, 2], [3, 4, 5]]]]


def test_apply_treats_global_and_patch_tokens_alike() -> None:
    tokens = Tokens(torch.ones(2, 4), torch.ones(2, 6, 4), (3, 2)).apply(lambda x: 3 * x[..., :2])
    assert tokens.grid == (3, 2)
    assert tokens.cls.tolist() == [[3, 3]] * 2
    assert tokens.patches.shape == (2, 6, 2)


@pytest.mark.parametrize(
    ("cls", "patches", "message"),
    [
        ((1, 4), (1, 5, 4), "do not fill a 2x3 grid"),
        ((1, 4), (6, 4), "do not fill a 2x3 grid"),
        ((1, 5), (1, 6, 4), "does not go with patches"),
        ((2, 4), (1, 6, 4), "does not go with patches"),
        ((1, 1, 4), (1, 6, 4), "does not go with patches"),
    ],
)
def test_shapes_that_do_not_fit(cls: tuple, patches: tuple, message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        Tokens(torch.zeros(cls), torch.zeros(patches), (2, 3))
