"""From images to INR parameters, against a plain reading in numpy: patches, transformer, heads of the weight tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tiny_hypernets import TOKENIZER, TRANSFORMER, pictures, tiny
from torch import Tensor

from huvr.hypernets.anr import ANR

HEADS = TRANSFORMER.heads
erf = np.vectorize(math.erf)


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def linear(x: np.ndarray, layer: Any) -> np.ndarray:
    return x @ numbers(layer.weight).T + (0 if layer.bias is None else numbers(layer.bias))


def norm(x: np.ndarray, layer: Any) -> np.ndarray:
    away = x - x.mean(-1, keepdims=True)
    return away / np.sqrt((away**2).mean(-1, keepdims=True) + layer.eps) * numbers(layer.weight) + numbers(layer.bias)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Every token by itself, head by head."""
    found = []
    for query in q:
        mixed = []
        for ask, keys, values in zip(np.split(query, HEADS), np.split(k, HEADS, 1), np.split(v, HEADS, 1), strict=True):
            shares = np.exp(keys @ ask / math.sqrt(len(ask)))
            mixed.append(shares / shares.sum() @ values)
        found.append(np.concatenate(mixed))
    return np.stack(found)


def to_itself(x: np.ndarray, attention: Any) -> np.ndarray:
    return linear(attend(*np.split(linear(x, attention.qkv), 3, axis=1)), attention.proj)


def perceptron(x: np.ndarray, mlp: Any) -> np.ndarray:
    hidden = linear(x, mlp.fc1)
    return linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, mlp.fc2)


def transformed(x: np.ndarray, layers: Any) -> np.ndarray:
    for layer in layers:
        x = x + to_itself(norm(x, layer.norm1), layer.attn)
        x = x + perceptron(norm(x, layer.norm2), layer.mlp)
    return x


def data_tokens(image: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Patches in rows, the image in a margin of black; weights of a patch by colour, row and column."""
    side, padded = TOKENIZER.patch, np.pad(image, ((0, 0), (1, 1), (1, 1)))
    corners = [(row, column) for row in range(0, 15, side) for column in range(0, 15, side)]
    patches = np.stack([padded[:, row : row + side, column : column + side].ravel() for row, column in corners])
    kernel = numbers(tokenizer.project.weight).reshape(-1, 3 * side * side)
    return patches @ kernel.T + numbers(tokenizer.project.bias) + numbers(tokenizer.positions)[0]


@pytest.mark.parametrize("name", ["TransINR", "GINR"])
def test_weight_tokens_pass_the_transformer_with_those_of_the_image(name: str) -> None:
    net, images = tiny(name).double().eval(), pictures().double()
    found = net.encode(images).tensors
    for number, image in enumerate(images):
        tokens = np.concatenate([data_tokens(numbers(image), net.tokenizer), numbers(net.weight_tokens)])
        place, out = 9, transformed(tokens, net.blocks)  # behind the 3 × 3 patches, layer by layer of the INR
        for factors, (head_norm, head), count in zip(found, net.heads, net.columns.values(), strict=True):
            expected = linear(norm(out[place : place + count], head_norm), head)
            np.testing.assert_allclose(numbers(factors[number]), expected, rtol=0, atol=1e-9)
            place += count
        assert place == len(out)


def test_instance_tokens_look_at_the_encoded_image() -> None:
    net, images = tiny("ANR").double().eval(), pictures().double()
    assert isinstance(net, ANR)
    (found,) = net.encode(images).tensors
    for number, image in enumerate(images):
        context = transformed(data_tokens(2 * numbers(image) - 1, net.tokenizer), net.encoder)
        x = numbers(net.weight_tokens)
        for layer in net.decoder:
            x = x + to_itself(norm(x, layer.norms[0]), layer.attention)
            asking, cross = norm(x, layer.norms[1]), layer.cross
            seen = attend(linear(asking, cross.to_q), linear(context, cross.to_k), linear(context, cross.to_v))
            x = x + linear(seen, cross.to_out)
            x = x + perceptron(norm(x, layer.norms[2]), layer.mlp)
        expected = numbers(net.scale) * linear(norm(x, net.head[0]), net.head[1]) + numbers(net.shift)
        np.testing.assert_allclose(numbers(found[number]), expected, rtol=0, atol=1e-9)
