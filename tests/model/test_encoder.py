from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.model.encoder import AlignedSwiGLU, Encoder, released_vit, tokens_of


def rotated(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """RoPE on (B, heads, N, D): the first half of D turns with the row, the second with the column, in adjacent pairs."""
    quarter = x.shape[-1] // 4
    frequencies = 10000.0 ** (-torch.arange(quarter) * 2 / (2 * quarter))
    angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=1)  # one for each pair
    turn = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.unflatten(-1, (2 * quarter, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)


def plain_vit(w: dict[str, Tensor], images: Tensor, heads: int, positions: tuple[Tensor, Tensor]) -> Tensor:
    """The released encoder from its description: every token of the last layer, normed."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    kernel = w["patch_embed.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    patches = F.unfold(images, patch, stride=patch).transpose(1, 2) @ kernel.flatten(1).T + w["patch_embed.proj.bias"]
    prefix = torch.cat([w["cls_token"], w.get("reg_token", torch.empty(1, 0, width))], dim=1)
    x = torch.cat([prefix.expand(len(images), -1, -1), patches], dim=1)
    row, column = (torch.cat([torch.zeros(prefix.shape[1]), place.flatten()]) for place in positions)  # zero turns nothing
    for i in range(sum(name.endswith("norm1.weight") for name in w)):
        block = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = rotated(q, row, column) @ rotated(k, row, column).mT / (width / heads) ** 0.5
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        y = norm(x, f"{block}.norm2")
        gate = linear(y, f"{block}.mlp.fc1_g")
        gated = gate * torch.sigmoid(gate) * linear(y, f"{block}.mlp.fc1_x")
        x = x + linear(norm(gated, f"{block}.mlp.norm"), f"{block}.mlp.fc2")
    return norm(x, "norm")


def spread(vit: torch.nn.Module) -> dict[str, Tensor]:
    """Random weights large enough for every part to show, as a state dict."""
    torch.manual_seed(0)
    for name, parameter in vit.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith(("norm.weight", "norm1.weight", "norm2.weight"))), std=0.1)
    return vit.state_dict()


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize(
    ("positions", "grid", "step"),
    [
        ("scaled", (4, 4), (4, 4)),  # the released rule at its native size: any grid fills 16 positions
        ("scaled", (2, 8), (8, 2)),
        ("index", (4, 4), (1, 1)),
        ("index", (3, 6), (1, 1)),
    ],
)
def test_released_encoder_equals_plain_formulas(registers: int, positions: str, grid: tuple, step: tuple) -> None:
    vit = released_vit(32, 8, width=48, depth=2, heads=3, registers=registers, positions=positions)
    weights = spread(vit)
    images = torch.randn(2, 3, 8 * grid[0], 8 * grid[1])
    places = torch.meshgrid(*(torch.arange(n) * float(s) for n, s in zip(grid, step, strict=True)), indexing="ij")
    expected = plain_vit(weights, images, 3, places)
    tokens = tokens_of(vit, images)
    assert tokens.grid == grid
    torch.testing.assert_close(tokens.cls, expected[:, 0], atol=2e-5, rtol=0)
    torch.testing.assert_close(tokens.patches, expected[:, 1 + registers :], atol=2e-5, rtol=0)


@pytest.mark.parametrize("hidden", [1, 63, 65, 170])
def test_padded_products_of_an_odd_width_are_those_of_timm(hidden: int) -> None:
    torch.manual_seed(0)
    mlp = AlignedSwiGLU(24, hidden, norm_layer=torch.nn.LayerNorm).double()
    torch.nn.init.normal_(mlp.norm.weight)
    torch.nn.init.normal_(mlp.norm.bias)
    torch.nn.init.normal_(mlp.fc1_g.bias)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    plain, padded = (
        (output, *torch.autograd.grad(output.square().sum(), mlp.parameters())) for output in (mlp(x), mlp.aligned(x))
    )
    torch.testing.assert_close(padded, plain, rtol=1e-11, atol=1e-11)


def test_every_layer_of_the_released_encoder_can_pad_its_products() -> None:
    vit = released_vit(32, 8, width=60, depth=2, heads=3, registers=0, positions="scaled")
    assert all(block.mlp.fc1_g.out_features == 160 and isinstance(block.mlp, AlignedSwiGLU) for block in vit.blocks)


def test_released_initialisation() -> None:
    torch.manual_seed(0)
    vit = released_vit(32, 8, width=192, depth=3, heads=3, registers=0, positions="scaled")
    kernel = vit.patch_embed.proj.weight
    bound = (6 / (192 + 3 * 64)) ** 0.5  # Xavier on the flattened kernel
    assert 0.98 * bound < kernel.abs().max() <= bound
    for number, block in enumerate(vit.blocks, start=1):
        for linear, std in ((block.attn.qkv, 0.02), (block.mlp.fc1_g, 0.02), (block.attn.proj, 0.02 / (2 * number) ** 0.5)):
            assert linear.weight.std().item() == pytest.approx(std, rel=0.03)
            assert not linear.bias.any()
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.03)


def test_images_are_normalised() -> None:
    vit = released_vit(32, 8, width=48, depth=1, heads=3, registers=0, positions="scaled")
    images = torch.rand(1, 3, 32, 32)
    expected = vit.forward_features(images * 2 - 1)
    torch.testing.assert_close(Encoder(vit)(images).sequence, expected)


def test_timm_vit_by_name_with_its_own_normalisation() -> None:
    torch.manual_seed(0)
    encoder = Encoder.from_timm("vit_small_patch16_dinov3", image_size=32).eval()
    assert (encoder.dim, encoder.patch) == (384, 16)
    images = torch.rand(1, 3, 32, 48)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = encoder.vit.forward_features((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    tokens = encoder(images)
    assert tokens.grid == (2, 3)
    torch.testing.assert_close(tokens.cls, features[:, 0])
    torch.testing.assert_close(tokens.patches, features[:, 5:])  # four registers in between


def test_without_cls_the_mean_of_patches_stands_for_it() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    conv = timm.create_model("resnet10t", num_classes=0).eval()
    tokens = tokens_of(conv, images)
    assert tokens.grid == (2, 3)
    torch.testing.assert_close(tokens.map, conv.forward_features(images))
    torch.testing.assert_close(tokens.cls, conv.forward_features(images).mean((2, 3)))
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, class_token=False, global_pool="avg", dynamic_img_size=True
    ).eval()
    tokens = tokens_of(vit, images)
    assert tokens.grid == (4, 6)
    torch.testing.assert_close(tokens.cls, vit.forward_features(images).mean(1))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "vit_tiny_r_s16_p8_224"])
def test_every_parameter_of_a_timm_encoder_is_behind_its_tokens(name: str) -> None:
    with torch.device("meta"):
        encoder = Encoder.from_timm(name, image_size=2 * 112)
    tokens = encoder(torch.zeros(1, 3, 4 * encoder.patch, 6 * encoder.patch, device="meta"))
    assert tokens.grid == (4, 6)
    tokens.sequence.sum().backward()
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", ["no_such_model", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_encoders_that_are_no_timm_vit(name: str) -> None:
    with pytest.raises(HuvrError, match=f"encoder '{name}' is not a timm ViT"):
        Encoder.from_timm(name, image_size=32)
