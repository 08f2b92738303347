"""The INR stage, factorised against a plain reading of the formulas that builds every patch's weights.

    python benchmarks/inr.py

ViT-B sizes: 256 patches an image, width 256. Each of the two runs in a process of its own; peak memory is what the
process grew by. Outputs and gradients of the two are compared first, also in fp64: in fp32 a rounding can put one
of millions of ReLU inputs on the other side of zero, which moves gradients, though not outputs, by up to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from common import peak_memory_mb, reset_peak_memory, resident_mb, write_record
from torch import Tensor
from torch.nn import functional as F

from huvr.model import Tokens
from huvr.model.inr import PatchINR, ReleasedPatchINR, encode_positions

CPU = torch.device("cpu")
FORMS = {"released": ReleasedPatchINR, "free": PatchINR}


def materialised(inr: PatchINR, tokens: Tokens) -> Tensor:
    """The same picture with a weight matrix of its own for each patch and a kernel for each image.

    Released form: every weight, modulated or not, is normalised over its inputs.
    """
    released = isinstance(inr, ReleasedPatchINR)
    (h, w), k, b, n = tokens.grid, inr.cells, *tokens.patches.shape[:2]
    u, c = inr.to_patch(tokens.patches), inr.to_global(tokens.cls)
    centres = (torch.arange(k) + 0.5) * 2 / k - 1
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).reshape(1, 1, k * k, 2)
    x = encode_positions(grid, inr.frequencies, inr.max_frequency).to(u.dtype).expand(b, n, -1, -1)
    for index, layer in enumerate(inr.layers):
        weight = layer.weight.T[None, None].expand(b, n, -1, -1)  # (B, N, in, out)
        if released:
            modulated = weight * u[..., None] * c[:, None, None] if index == 1 else weight.contiguous()
            weight = F.normalize(modulated, dim=2)
        elif index == 1:
            weight = F.normalize(weight, dim=2) * (1 + u[..., None]) * (1 + c[:, None, None])
        x = F.relu(torch.einsum("bnpi,bnio->bnpo", x, weight) + layer.bias)
    picture = x.view(b, h, w, k, k, -1).permute(0, 5, 1, 3, 2, 4).reshape(1, -1, h * k, w * k)
    kernel = inr.to_pixels.weight.expand(b, -1, -1, -1, -1)
    if released:
        kernel = F.normalize(kernel.flatten(2), dim=2).view_as(kernel)
    out = F.conv2d(picture, kernel.flatten(0, 1), inr.to_pixels.bias.repeat(b), padding=1, groups=b)
    painted = F.pixel_shuffle(out.view(b, -1, h * k, w * k), inr.upsample)
    return painted if released else painted + cosine_part(inr, u, c, (h, w))


def cosine_part(inr: PatchINR, u: Tensor, c: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cosine head in plain steps: coefficients of every patch, the inverse cosine transform, the patches in their places."""
    head, size = inr.cosine_head, inr.patch
    k, place = torch.arange(size, dtype=u.dtype), torch.arange(size, dtype=u.dtype)[:, None]
    waves = torch.cos(math.pi * k * (2 * place + 1) / (2 * size)) * ((2 - (k == 0).to(u.dtype)) / size).sqrt()
    coefficients = head.of_patch(u) + head.of_global(c)[:, None]
    patches = waves @ coefficients.view(len(u), *grid, 3, size, size) @ waves.T
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(u), 3, grid[0] * size, grid[1] * size)


def case(form: str, images: int) -> tuple[PatchINR, Tokens]:
    torch.manual_seed(0)
    tokens = Tokens(torch.randn(images, 1024), torch.randn(images, 256, 1024), (16, 16))
    return FORMS[form](1024), tokens


def step(inr: PatchINR, tokens: Tokens, build: bool) -> Tensor:
    inr.zero_grad()
    picture = materialised(inr, tokens) if build else inr(tokens)
    picture.square().mean().backward()
    return picture.detach()


def difference(form: str, dtype: torch.dtype) -> dict[str, float]:
    """Largest differences of outputs and gradients, each over the largest value."""
    inr, tokens = case(form, 1)
    inr, tokens = inr.to(dtype), tokens.apply(lambda t: t.to(dtype))
    outputs, gradients = [], []
    for build in (False, True):
        outputs.append(step(inr, tokens, build))
        gradients.append([p.grad.clone() for p in inr.parameters()])
    largest = max(g.abs().max() for g in gradients[1])
    return {
        "outputs": float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()),
        "gradients": float(max((a - b).abs().max() for a, b in zip(*gradients, strict=True)) / largest),
    }


def measure(form: str, images: int, build: bool, runs: int) -> dict[str, float]:
    """Seconds (median) and growth of the process in MB, forward and backward."""
    inr, tokens = case(form, images)
    step(inr, Tokens(tokens.cls[:1], tokens.patches[:1, :4], (2, 2)), build)  # the libraries' own buffers
    reset_peak_memory(CPU)
    before = resident_mb("VmRSS")
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        step(inr, tokens, build)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds),
        "peak_mb": peak_memory_mb(CPU) - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("FORM", "BUILD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.images, args.one[1] == "materialised", args.runs)))
        return

    figures = {}
    for form in FORMS:
        row: dict[str, Any] = {
            "difference_fp32": difference(form, torch.float32),
            "difference_fp64": difference(form, torch.float64),
        }
        for build in ("factorised", "materialised"):
            command = [sys.executable, __file__, "--one", form, build, "--images", str(args.images), "--runs", str(args.runs)]
            row[build] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        row["times_faster"] = row["materialised"]["seconds"] / row["factorised"]["seconds"]
        row["times_less_memory"] = row["materialised"]["peak_mb"] / row["factorised"]["peak_mb"]
        figures[form] = row
        print(form, row, flush=True)
    write_record("inr", "random tokens", {"images": args.images, "runs": args.runs, "patches": 256, "width": 256}, figures)


if __name__ == "__main__":
    main()
