from __future__ import annotations

import pytest
import torch
from torch import Tensor

from huvr.model import Tokens
from huvr.model.decoder import TokenDecoder


def norm(x: Tensor, module: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def feed_forward(x: Tensor, mlp: torch.nn.Module) -> Tensor:
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2  # exact GELU
    return hidden @ mlp.fc2.weight.T + mlp.fc2.bias


def attention(x: Tensor, module: torch.nn.Module, heads: int) -> Tensor:
    assert module.qkv.bias is None
    q, k, v = (x @ w.T for w in module.qkv.weight.chunk(3))
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    mixed = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
    return mixed @ module.proj.weight.T + module.proj.bias


def a_decoder(attends: bool, doubling: bool = False, depth: int = 3) -> TokenDecoder:
    torch.manual_seed(0)
    decoder = TokenDecoder(16, depth, 4, 40, attends, doubling)
    for parameter in decoder.parameters():  # norms and biases away from one and zero
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder


def some_tokens() -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return Tokens(torch.randn(2, 16, generator=generator), torch.randn(2, 6, 16, generator=generator), (2, 3))


def test_with_attention() -> None:
    decoder, tokens = a_decoder(attends=True), some_tokens()
    x = tokens.sequence
    for layer in decoder.layers:
        x = x + attention(norm(x, layer.norm1), layer.attn, heads=4)
        x = x + feed_forward(norm(x, layer.norm2), layer.mlp)
    torch.testing.assert_close(decoder(tokens)[0].sequence, x)


@pytest.mark.parametrize(("doubling", "scale"), [(False, 1), (True, 2)])
def test_without_attention(doubling: bool, scale: int) -> None:
    decoder, tokens = a_decoder(attends=False, doubling=doubling), some_tokens()
    x = tokens.sequence
    for layer in decoder.layers:
        x = scale * x
        x = x + feed_forward(norm(x, layer.norm), layer.mlp)
    torch.testing.assert_close(decoder(tokens)[0].sequence, x)


def test_without_attention_every_token_is_decoded_alone() -> None:
    tokens = some_tokens()
    changed = Tokens(tokens.cls, tokens.patches.clone().index_fill_(1, torch.tensor([2]), 1.0), tokens.grid)
    for attends in (False, True):
        decoder = a_decoder(attends)
        moved = (decoder(tokens)[0].sequence != decoder(changed)[0].sequence).any(-1).any(0)
        assert moved.tolist() == ([True] * 7 if attends else [False] * 3 + [True] + [False] * 3)


@pytest.mark.parametrize("attends", [False, True])
def test_taps_are_the_outputs_of_the_named_layers(attends: bool) -> None:
    tokens = some_tokens()
    decoded, taps = a_decoder(attends)(tokens, taps=(1, 3))
    assert list(taps) == [1, 3]
    assert torch.equal(taps[3].sequence, decoded.sequence)
    first = a_decoder(attends)
    del first.layers[1:]
    assert torch.equal(taps[1].sequence, first(tokens)[0].sequence)
    assert taps[1].grid == (2, 3)


@pytest.mark.parametrize("attends", [False, True])
def test_hidden_width_is_exact(attends: bool) -> None:
    # in floating point 488 / 56 * 56 is less than 488
    assert TokenDecoder(56, 1, 4, 488, attends).layers[0].mlp.fc1.out_features == 488
