"""The patch INR written out plainly: one weight matrix per patch, loops, no cleverness. What ``huvr.model.inr`` must equal."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.model import Tokens


def free(weight: Tensor, u: Tensor, c: Tensor) -> Tensor:
    """Modulated weight (in, out) of one patch from the base weight (in, out): unit columns, then scales around one."""
    columns = weight / weight.norm(dim=0)
    return columns * (1 + u)[:, None] * (1 + c)


def released(weight: Tensor, u: Tensor, c: Tensor) -> Tensor:
    """The same in the released form: the outer product of both tokens' vectors, then unit columns."""
    modulated = weight * torch.outer(u, c)
    return modulated / modulated.norm(dim=0).clamp_min(1e-12)


def positions(cells: int, frequencies: int, highest: float) -> Tensor:
    """Encoded cell centres of one patch, (cells, cells, 4 * frequencies), number by number."""
    table = torch.empty(cells, cells, 4 * frequencies, dtype=torch.float64)
    for row in range(cells):
        for column in range(cells):
            y, x = ((2 * i + 1) / cells - 1 for i in (row, column))
            for j in range(frequencies):
                w = math.pi * highest ** (j / (frequencies - 1))
                values = (math.cos(w * y), math.cos(w * x), math.sin(w * y), math.sin(w * x))
                for block, value in enumerate(values):
                    table[row, column, block * frequencies + j] = value
    return table


def linear_part(inr: torch.nn.Module, tokens: Tokens) -> Tensor:
    """The cosine head's picture, from scipy's matrix of the cosine transform."""
    (h, w), p, head = tokens.grid, inr.patch, inr.cosine_head
    waves = torch.from_numpy(scipy.fft.idct(np.eye(p), axis=0, norm="ortho")).to(tokens.cls)
    coefficients = head.of_patch(inr.to_patch(tokens.patches)) + head.of_global(inr.to_global(tokens.cls))[:, None]
    pixels = waves @ coefficients.view(-1, h, w, 3, p, p) @ waves.T
    return pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, h * p, w * p)


def picture(inr: torch.nn.Module, tokens: Tokens, kind: str) -> Tensor:
    """What ``inr(tokens)`` should be, ``(B, 3, h * patch, w * patch)``, for ``kind`` "free" or "released"."""
    modulate, unit = {"free": (free, False), "released": (released, True)}[kind]
    first, second, third = inr.layers

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.relu(x @ weight + bias)

    def base(weight: Tensor) -> Tensor:
        table = weight.flatten(1).T
        return table / table.norm(dim=0) if unit else table

    (h, w), k, r = tokens.grid, inr.patch // inr.upsample, inr.upsample
    x = positions(k, inr.frequencies, inr.max_frequency).to(tokens.cls)
    hidden = layer(x, base(first.weight), first.bias)
    images = []
    for cls, patches in zip(tokens.cls, tokens.patches, strict=True):
        c = inr.to_global(cls)
        rows = []
        for i in range(h):
            row = []
            for j in range(w):
                weight = modulate(second.weight.T, inr.to_patch(patches[i * w + j]), c)
                row.append(layer(layer(hidden, weight, second.bias), base(third.weight), third.bias))
            rows.append(torch.cat(row, dim=1))
        features = F.pad(torch.cat(rows, dim=0), (0, 0, 1, 1, 1, 1))  # zeros around the picture, not around patches
        kernel = base(inr.to_pixels.weight)  # rows run over channel, then kernel row, then kernel column
        neighbours = [features[dy : dy + h * k, dx : dx + w * k] for dy in range(3) for dx in range(3)]
        values = torch.stack(neighbours, dim=-1).flatten(-2) @ kernel + inr.to_pixels.bias
        image = values.new_empty(3, h * k * r, w * k * r)
        for channel in range(3):
            for dy in range(r):
                for dx in range(r):
                    image[channel, dy::r, dx::r] = values[..., channel * r * r + dy * r + dx]
        images.append(image)
    return torch.stack(images) + (0 if unit else linear_part(inr, tokens))
