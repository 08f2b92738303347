"""The INRs against plain readings of their papers, and the sizes of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_hypernets import INR, TOKENIZER, TRANSFORMER, pictures, tiny
from torch import Tensor

from huvr.errors import HuvrError
from huvr.hypernets.anr import ANR
from huvr.hypernets.coordinate_mlp import INRConfig
from huvr.hypernets.ginr import GINR
from huvr.hypernets.interface import HyperINR, INRParameters
from huvr.hypernets.tokenizer import TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig, blocks
from huvr.hypernets.transinr import TransINR


def fourier(points: np.ndarray, frequencies: int, highest: float) -> np.ndarray:
    """Features of (N, 2) points, number by number: cos of the row, cos of the column, sin of the row, sin of the column."""
    waves = [math.pi * highest ** (j / (frequencies - 1)) for j in range(frequencies)]
    return np.array([
        [f(w * place) for f in (math.cos, math.sin) for place in point for w in waves] for point in points.tolist()
    ])  # fmt: skip


def plain(layers: list[tuple[np.ndarray, np.ndarray]], features: np.ndarray) -> np.ndarray:
    """An MLP of explicit weights (in, out), which it normalises column by column."""
    x = features
    for number, (weight, bias) in enumerate(layers):
        columns = [weight[:, o] / math.sqrt((weight[:, o] ** 2).sum()) for o in range(weight.shape[1])]
        x = x @ np.stack(columns, axis=1) + bias
        x = np.maximum(x, 0) if number < len(layers) - 1 else x
    return x + 0.5


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def weights_of_image(net: HyperINR, parameters: INRParameters, image: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every weight matrix of one image, built by loops as the papers have it."""
    factors = {layer: numbers(t[image]).T for layer, t in zip(net.columns, parameters.tensors, strict=True)}
    layers = []
    for layer, bias in enumerate(net.mlp.biases):
        if isinstance(net, GINR) and layer in factors:
            weight = factors[layer] @ numbers(net.shared[str(layer)])
        else:
            weight = numbers(net.mlp.weights[str(layer)]).copy()
            if layer in factors:
                for column in range(weight.shape[1]):
                    weight[:, column] *= factors[layer][:, column % factors[layer].shape[1]]
        layers.append((weight, numbers(bias)))
    return layers


@pytest.mark.parametrize("modulated", [None, (1,), (0, 3)])
@pytest.mark.parametrize("kind", [TransINR, GINR])
@torch.no_grad()
def test_weights_of_each_image_built_plainly_paint_the_same(kind: type, modulated: tuple[int, ...] | None) -> None:
    torch.manual_seed(1)
    if kind is GINR:
        net = GINR(TOKENIZER, TRANSFORMER, INR, 12, modulated or (0, 1, 2, 3))
    else:
        net = TransINR(TOKENIZER, TRANSFORMER, INR, 8, modulated)
    for bias in net.mlp.biases:
        bias.normal_()
    net = net.double().eval()
    parameters = net.encode(pictures(3).double())
    points = torch.rand(3, 20, 2, dtype=torch.float64) * 2 - 1
    found = net.query(parameters, points)
    for image in range(3):
        layers = weights_of_image(net, parameters, image)
        expected = plain(layers, fourier(points[image].numpy(), INR.frequencies, INR.max_frequency))
        np.testing.assert_allclose(found[image].numpy(), expected, rtol=0, atol=1e-6)
    shared = net.query(parameters, points[:1])  # the first points for all images
    torch.testing.assert_close(shared[1], net.query(parameters, points[:1].expand(3, -1, -1))[1])


def test_the_shared_base_of_transinr_is_not_repeated_for_every_image() -> None:
    net, kept = tiny("TransINR"), []
    assert isinstance(net, TransINR)
    (factor, *_) = net.encode(pictures(3)).tensors
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        net.weight(0, factor.transpose(1, 2))
    base = net.mlp.weights["0"]  # of which a copy for each image would be kept for the gradient in its place
    assert [tensor.numel() for tensor in kept if tensor.data_ptr() == base.data_ptr()] == [base.numel()]


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max())
    return e / e.sum()


@torch.no_grad()
def test_points_of_anr_attend_to_the_tokens_of_their_image() -> None:
    net = tiny("ANR").double()
    assert isinstance(net, ANR)
    net.attention.to_q.weight *= 10  # so that attention is uneven
    cut = 0
    parameters = net.encode(pictures().double())
    points = torch.rand(2, 5, 2, dtype=torch.float64) * 2 - 1
    found = net.query(parameters, points).numpy()
    heads, wide = TRANSFORMER.heads, TRANSFORMER.head_width
    q, k, v = (numbers(part.weight) for part in (net.attention.to_q, net.attention.to_k, net.attention.to_v))
    for image in range(2):
        tokens = numbers(parameters.tensors[0][image])
        for point, features in enumerate(fourier(points[image].numpy(), 8, 8.0)):
            mixed = []
            for head in range(heads):
                part = slice(head * wide, (head + 1) * wide)
                share = softmax((tokens @ k[part].T) @ (q[part] @ features) / math.sqrt(wide))
                share = np.array([max(one - 0.1, 0) for one in share])
                cut += int((share == 0).sum())
                mixed.append((share / share.sum()) @ (tokens @ v[part].T))
            x = numbers(net.attention.to_out.weight) @ np.concatenate(mixed) + numbers(net.attention.to_out.bias)
            for number, layer in enumerate(net.mlp):
                x = numbers(layer.weight) @ x + numbers(layer.bias)
                x = np.maximum(x, 0) if number < len(net.mlp) - 1 else x
            np.testing.assert_allclose(found[image, point], x / 2 + 0.5, rtol=0, atol=1e-6)
    assert cut > 10  # attention weights below the threshold


@torch.no_grad()
def test_the_transformer_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = blocks(TransformerConfig(32, 2, 4, 8, 48, qkv_bias=True, dropout=0.1)).eval()
    layer = torch.nn.TransformerEncoderLayer(32, 4, 48, 0.1, "gelu", norm_first=True, batch_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    for a, b in zip(ours, theirs.layers, strict=True):
        pairs = [(a.norm1, b.norm1), (a.norm2, b.norm2), (a.mlp.fc1, b.linear1), (a.mlp.fc2, b.linear2)]
        pairs.append((a.attn.proj, b.self_attn.out_proj))
        for mine, other in pairs:
            other.load_state_dict(mine.state_dict())
        b.self_attn.in_proj_weight.copy_(a.attn.qkv.weight)
        b.self_attn.in_proj_bias.copy_(a.attn.qkv.bias)
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x))
    dropped = [m.p for m in ours.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert dropped == [0.1] * 4  # once after the attention and once after the MLP of each layer, as in GINR


@torch.no_grad()
def test_tokens_are_patches_of_the_padded_image_row_by_row() -> None:
    net = tiny("TransINR")
    image, project = pictures(1), net.tokenizer.project
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    tokens, grid = net.tokenizer(image)
    assert grid == (3, 3)
    for row in range(3):
        for column in range(3):
            patch = padded[0, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            expected = project.weight.flatten(1) @ patch.flatten() + project.bias + net.tokenizer.positions[0, 3 * row + column]
            torch.testing.assert_close(tokens[0, 3 * row + column], expected)


def layer_size(width: int, inner: int, hidden: int, qkv_bias: bool = False, crossed: bool = False) -> int:
    """Parameters of a pre-norm layer by hand: norms, q, k and v, output, MLP; ANR's decoder attends twice."""
    attention = 2 * width + 3 * width * inner + 3 * inner * qkv_bias + inner * width + width
    return attention * (2 if crossed else 1) + 2 * width + 2 * width * hidden + hidden + width


def test_sizes_are_those_of_the_papers() -> None:
    layer = layer_size(768, 768, 3072)
    tokenizer = 243 * 768 + 768 + 400 * 768
    head = 2 * 768 + 768 * 256 + 256
    inr = 4 * (256 * 256 + 256) + 256 * 3 + 3
    anr = [
        300 * 512 + 512 + 169 * 512,  # patches of 10 × 10 × 3, 13 × 13 of them
        6 * layer_size(512, 384, 3072) + 6 * layer_size(512, 384, 3072, crossed=True),
        256 * 512 * 3 + 2 * 512 + 512 * 512 + 512,  # tokens, scales and shifts; norm and projection
        3 * 512 * 384 + 384 * 512 + 512 + 4 * (512 * 512 + 512) + 512 * 3 + 3,  # the INR
    ]
    expected = {
        TransINR: tokenizer + 6 * layer + (4 * 64 + 3) * 768 + 5 * head + inr,
        GINR: tokenizer + 6 * layer_size(768, 768, 3072, True) + 256 * 768 + head + inr - 256 * 256 + 256 * 256,
        ANR: sum(anr),
    }
    for kind, count in expected.items():
        with torch.device("meta"):
            net = kind()
        assert sum(p.numel() for p in net.parameters()) == count
        images = torch.empty(2, 3, 178, 178, device="meta")
        parameters = net.encode(images) if kind is not ANR else net.encode(images[..., :128, :128])
        assert parameters.numbers == {TransINR: 4 * 256 * 64 + 256 * 3, GINR: 256 * 256, ANR: 256 * 512}[kind]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransINR(TOKENIZER, TRANSFORMER, INR, groups=5), "groups 5: does not divide the 16 outputs of layer 0"),
        (
            lambda: TransINR(TOKENIZER, TRANSFORMER, INR, modulated=(4,)),
            r"modulated \[4\]: name one or more of the layers 0 to 3",
        ),
        (lambda: GINR(TOKENIZER, TRANSFORMER, INR, modulated=()), "name one or more of the layers"),
        (lambda: GINR(TOKENIZER, TRANSFORMER, INR, rank=0), "rank 0"),
        (lambda: ANR(instance_tokens=256, threshold=0.004), "threshold 0.004: expected 0 to below 1/256"),
        (lambda: TokenizerConfig(8, 9), "image_size 8, patch 9, padding 1: no patch fits"),
        (lambda: TransformerConfig(dropout=1), "dropout from 0 to below 1"),
        (lambda: INRConfig(depth=0), "expected sizes of 1 or more"),
    ],
)
def test_shapes_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        make()  # type: ignore[operator]
