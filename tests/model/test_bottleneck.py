from __future__ import annotations

import torch
from torch import Tensor

from huvr.model import Tokens
from huvr.model.bottleneck import Bottleneck


def normalised(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def some_tokens(dim: int) -> Tokens:
    torch.manual_seed(0)
    return Tokens(torch.randn(2, dim), 3 + torch.randn(2, 6, dim), (2, 3))


def test_down_is_norm_then_linear() -> None:
    bottleneck, tokens = Bottleneck(24, 4, 32), some_tokens(24)
    norm, linear = bottleneck.down
    torch.nn.init.normal_(norm.weight)
    expected = (normalised(tokens.sequence) * norm.weight + norm.bias) @ linear.weight.T + linear.bias
    tintoks = bottleneck.compress(tokens)
    assert tintoks.dim == 4
    torch.testing.assert_close(tintoks.sequence, expected)


def test_up_keeps_the_size_of_a_tintok_unless_released() -> None:
    tintoks = some_tokens(4)
    torch.manual_seed(1)
    ours = Bottleneck(24, 4, 32)
    torch.manual_seed(1)
    released = Bottleneck(24, 4, 32, norm_up=True)
    weight, bias = ours.up[1].weight, ours.up[1].bias
    torch.testing.assert_close(ours.expand(tintoks).sequence, tintoks.sequence @ weight.T + bias)
    weight, bias = released.up[1].weight, released.up[1].bias
    torch.testing.assert_close(released.expand(tintoks).sequence, normalised(tintoks.sequence) @ weight.T + bias)


def test_equal_widths_need_no_projection() -> None:
    tokens = some_tokens(24)
    bottleneck = Bottleneck(24, 24, 24, norm_up=True)
    assert not list(bottleneck.parameters())
    assert torch.equal(bottleneck.expand(bottleneck.compress(tokens)).sequence, tokens.sequence)
