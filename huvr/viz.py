"""Pictures for people: reconstruction panels and token maps."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from huvr.files import whole
from huvr.model import Tokens

GAP = 4  # pixels of white between two tiles
ERROR_GAIN = 4  # a mean error of 1 / ERROR_GAIN is the brightest colour
# black, violet, orange, yellow, white: luminance rises evenly, so equal steps of error look equal
HEAT = torch.tensor([[0, 0, 0], [95, 45, 145], [220, 100, 85], [252, 180, 60], [255, 255, 240]]) / 255


def panel(images: Tensor, reconstructions: Tensor, tokens: Tokens, patch: int | None = None) -> Tensor:
    """One row per image: input | reconstruction | error | PCA of the patch tokens.

    The error is the absolute difference averaged over the colours, times ``ERROR_GAIN``, black to white.
    The colours of the last tile are comparable within a panel only.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        reconstructions: the same shape; clamped to [0, 1] for display.
        tokens: of any kind, with one grid that covers the images.
        patch: pixels per patch; None where the grid fits the images exactly.

    Returns:
        uint8 ``(3, H', W')``.
    """
    images, reconstructions = images.detach().float().cpu(), reconstructions.detach().float().cpu()
    height, width = images.shape[-2:]
    tiles = [
        images,
        reconstructions,
        heat((images - reconstructions).abs().mean(1)),
        token_tile(tokens, (height, width), patch),
    ]
    rows = torch.stack(tiles, dim=1).flatten(0, 1).clamp(0, 1)
    return to_uint8(make_grid(rows, nrow=len(tiles), padding=GAP, pad_value=1.0)[:, GAP:-GAP, GAP:-GAP])


def heat(error: Tensor) -> Tensor:
    """Errors ``(B, H, W)`` as colours ``(B, 3, H, W)``."""
    place = (error * ERROR_GAIN).clamp(0, 1) * (len(HEAT) - 1)
    lower = place.long().clamp_max(len(HEAT) - 2)
    return torch.lerp(HEAT[lower], HEAT[lower + 1], (place - lower)[..., None]).permute(0, 3, 1, 2)


def token_tile(tokens: Tokens, size: tuple[int, int], patch: int | None = None) -> Tensor:
    """The PCA map of the patches in the size of the images, ``(B, 3, H, W)``: each patch a square of its colour."""
    maps = pca_map(tokens)
    if patch is None:
        return F.interpolate(maps, size, mode="nearest-exact")
    return F.interpolate(maps, scale_factor=patch, mode="nearest-exact")[..., : size[0], : size[1]]


def pca_map(tokens: Tokens) -> Tensor:
    """The first three principal components of all patch tokens of the batch as RGB, as the DINO papers show them.

    Each component runs from 0 at its 2nd to 1 at its 98th percentile. Its sign is arbitrary, so it is fixed:
    the largest loading is positive. Tokens with fewer than three numbers leave the other colours at 0.

    Returns:
        ``(B, 3, h, w)`` in [0, 1].
    """
    flat = tokens.patches.detach().double().cpu().flatten(0, 1)
    flat = flat - flat.mean(0)
    _, axes = torch.linalg.eigh(flat.T @ flat)  # ascending
    axes = axes.flip(1)[:, :3]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scores = flat @ axes
    low, high = torch.quantile(scores, torch.tensor([0.02, 0.98], dtype=scores.dtype), dim=0)
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
    colours = F.pad(colours, (0, 3 - colours.shape[1]))
    return colours.unflatten(0, tokens.patches.shape[:2]).transpose(1, 2).unflatten(2, tokens.grid)


def to_uint8(picture: Tensor) -> Tensor:
    """[0, 1] to the nearest of 0 to 255; values outside are clamped."""
    return (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def save_png(picture: Tensor, path: str | Path) -> None:
    """Write a uint8 picture ``(3, H, W)``, whole or not at all.

    Raises:
        HuvrError: where the file cannot be written.
    """
    with whole(path) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(temporary, format="PNG")
