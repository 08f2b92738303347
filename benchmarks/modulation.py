"""Which form of the modulation? Small networks trained alike, told apart by held-out PSNR.

    python benchmarks/modulation.py --data PACK/train.parquet          # or without --data: scikit-image's photographs
    python benchmarks/modulation.py --data PACK/train.parquet --optimizer muon --lr 4e-3

ViT 96×3, patch 8, TinToks of 16, 64-pixel crops, 400 steps of 32, 3 seeds a candidate. Besides PSNR each row states
what the global token is worth (PSNR lost when its TinTok is zeroed, or swapped with another image's) and the time
of the INR stage beside the released form. Per-patch PCA with 16 numbers a patch stands below the table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from common import RESULTS, random_crops, write_record
from pictures import load_pictures
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.metrics import psnr
from huvr.model import HUVR, HUVRConfig, Tokens
from huvr.model.bottleneck import Bottleneck
from huvr.model.cosine_head import CosineHead
from huvr.model.inr import PatchINR, ReleasedPatchINR, unit_columns
from huvr.optim import OptimizerName, make_optimizer
from huvr.tasks.rivals import PatchPCA

CONFIG = HUVRConfig(
    image_size=64, patch=8, width=96, depth=3, heads=3, tintok_dim=16, decoder_width=128, decoder_depth=2,
    decoder_hidden=512, inr_widths=(128, 128, 128),
)  # fmt: skip


class Bare(PatchINR):
    """The default form without its cosine head."""

    make_cosine_head = ReleasedPatchINR.make_cosine_head


class Parts(Bare):
    """The default form in parts, for its variants to change."""

    def modulated(self, points: Tensor, u: Tensor, c: Tensor) -> Tensor:
        """The modulated layer before its ReLU."""
        return self.product(points, u, c, self.layers[1].bias[None, None])

    def product(self, points: Tensor, u: Tensor, c: Tensor, bias: Tensor) -> Tensor:
        x = F.relu(self.layers[0](points)) * (1 + u)
        weight = unit_columns(self.layers[1].weight).T * (1 + c[:, None])
        return torch.baddbmm(bias, x.flatten(1, 4), weight).view(*x.shape[:-1], -1)

    def features(self, points: Tensor, u: Tensor, c: Tensor) -> Tensor:
        return F.relu(self.layers[2](F.relu(self.modulated(points, u, c))))


class PatchShift(Parts):
    """An added shift per patch behind the scales."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.to_patch[1] = nn.Linear(self.to_patch[1].in_features, 2 * self.to_patch[1].out_features)

    def modulated(self, points: Tensor, u: Tensor, c: Tensor) -> Tensor:
        u, shift = u.chunk(2, dim=-1)
        return super().modulated(points, u, c) + shift


class Bypass(Parts):
    """The modulated layer's linear output added to the features: a straight line from token to pixels."""

    def features(self, points: Tensor, u: Tensor, c: Tensor) -> Tensor:
        y = self.modulated(points, u, c)
        return F.relu(self.layers[2](F.relu(y))) + y


class GlobalShift(Bypass):
    """The same, with a scale and a shift from the global token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.to_global[1] = nn.Linear(self.to_global[1].in_features, 2 * self.to_global[1].out_features)

    def modulated(self, points: Tensor, u: Tensor, c: Tensor) -> Tensor:
        c, shift = c.chunk(2, dim=-1)
        return self.product(points, u, c, (self.layers[1].bias + shift)[:, None])


class PatchNormGlobalShift(GlobalShift):
    """The same, with columns normalised after the patch's modulation as released."""

    def product(self, points: Tensor, u: Tensor, c: Tensor, bias: Tensor) -> Tensor:
        weight, (c, bias) = self.layers[1].weight, (t.flatten(1)[:, None, None, None, None] for t in (c, bias))
        norm = F.linear(u.square(), weight.square()).sqrt().clamp_min(1e-12)
        return F.linear(F.relu(self.layers[0](points)) * u, weight) * ((1 + c) / norm) + bias


class PatchNorm(ReleasedPatchINR):
    """Columns normalised after the patch's modulation as released, outputs scaled by 1 + c."""

    def column_scale(self, u: Tensor, c: Tensor) -> Tensor:
        return super().column_scale(u, torch.ones_like(c)) * (1 + c[:, None, None, None, None])

    paint = PatchINR.paint


class PixelHead(nn.Module):
    """A linear map from patch token to pixels, not a function of the coordinates."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.patch, self.direct = patch, nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3 * patch**2))

    def forward(self, tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        return F.pixel_shuffle(tokens.apply(self.direct).map, self.patch)


class TokenHead(nn.Module):
    """A cosine head on the tokens themselves, in place of the vectors made of them for the INR."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.head = self.make(dim, patch)

    def make(self, dim: int, patch: int) -> CosineHead:
        return CosineHead(dim, dim, patch)

    def forward(self, tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        patches = self.norms[0](tokens.patches).unflatten(1, tokens.grid)
        return self.head(patches, self.norms[1](tokens.cls), phase)


class MeanCosineHead(CosineHead):
    """The mean of all patches comes from the global token alone."""

    def forward(self, u: Tensor, c: Tensor, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        return super().forward(u - u.mean((1, 2), keepdim=True), c, phase)


class TokenMeanHead(TokenHead):
    def make(self, dim: int, patch: int) -> CosineHead:
        return MeanCosineHead(dim, dim, patch)


class MeanHead(PatchINR):
    def make_cosine_head(self, widths: tuple[int, int, int]) -> CosineHead:
        return MeanCosineHead(widths[0], widths[1], self.patch)


class Beside(nn.Module):
    """The sum of two painters."""

    def __init__(self, inr: PatchINR, head: nn.Module) -> None:
        super().__init__()
        self.inr, self.head = inr, head

    def forward(self, tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        return self.inr(tokens, phase) + self.head(tokens, phase)


@dataclass(frozen=True)
class Candidate:
    """An INR, whether LayerNorm stands before the up-projection, and what paints beside the INR."""

    inr: type[PatchINR]
    norm_up: bool = False
    head: type[nn.Module] | None = None


CANDIDATES = {
    "released": Candidate(ReleasedPatchINR, norm_up=True),
    "patch norm as released, outputs × (1 + c)": Candidate(PatchNorm, norm_up=True),
    "free scales, LayerNorm up": Candidate(Bare, norm_up=True),
    "free scales": Candidate(Bare),
    "free scales, shift per patch": Candidate(PatchShift),
    "free scales, linear pixel head": Candidate(Bare, head=PixelHead),
    "free scales, linear bypass": Candidate(Bypass),
    "free scales, linear bypass, global shift": Candidate(GlobalShift),
    "free scales, linear bypass, global shift, patch norm": Candidate(PatchNormGlobalShift),
    "free scales, cosine head on the tokens": Candidate(Bare, head=TokenHead),
    "free scales, cosine head on the tokens, mean from the global one": Candidate(Bare, head=TokenMeanHead),
    "free scales, cosine head on u and c (the default)": Candidate(PatchINR),
    "free scales, cosine head on u and c, mean from c": Candidate(MeanHead),
}


def build(candidate: Candidate, seed: int) -> HUVR:
    torch.manual_seed(seed)
    c = CONFIG
    model = HUVR(c)
    model.bottleneck = Bottleneck(c.width, c.tintok_dim, c.decoder_width, candidate.norm_up)
    model.inr = candidate.inr(c.decoder_width, c.inr_widths, c.inr_frequencies, c.inr_max_frequency, c.patch, c.inr_upsample)
    if candidate.head:
        model.inr = Beside(model.inr, candidate.head(c.decoder_width, c.patch))
    if candidate.inr is ReleasedPatchINR:  # the released form entire
        for layer in model.decoder.layers:
            layer.scale = 2.0
    return model


def train(model: HUVR, batch: Callable[[], Tensor], steps: int, name: OptimizerName, lr: float) -> None:
    optimizer = make_optimizer(name, model.parameters(), lr, 0.01, (0.9, 0.999))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    for _ in range(steps):
        images = batch()
        loss = (2 * (model.reconstruct(images) - images)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def measure(model: HUVR, images: Tensor) -> dict[str, float]:
    """Held-out PSNR, and what is lost when the global TinTok is zeroed or swapped between images."""
    tintoks = model.compress(model.encode(images))

    def with_global(cls: Tensor) -> float:
        return psnr(model.render(model.expand(replace(tintoks, cls=cls))), images).mean().item()

    whole = with_global(tintoks.cls)
    return {
        "psnr": whole,
        "lost_if_zeroed": whole - with_global(torch.zeros_like(tintoks.cls)),
        "lost_if_swapped": whole - with_global(tintoks.cls.roll(1, 0)),
    }


def painting_seconds(candidate: Candidate, repeats: int = 9) -> float:
    """Forward and backward from decoder tokens to pixels for four ViT-B images, in seconds: the median."""
    torch.manual_seed(0)
    painter: nn.Module = candidate.inr(1024)
    if candidate.head:
        painter = Beside(painter, candidate.head(1024, 16))
    tokens = Tokens(*(torch.randn(4, *shape, requires_grad=True) for shape in ((1024,), (256, 1024))), (16, 16))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        painter(tokens).square().mean().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def run(
    job: tuple[str, int], pictures: list[Tensor], test: Tensor, steps: int, optimizer: OptimizerName, lr: float
) -> dict[str, float]:
    """Train one candidate from one seed and measure it."""
    torch.set_num_threads(1)
    name, seed = job
    model, rng = build(CANDIDATES[name], seed), np.random.default_rng(100 + seed)
    train(model.train(), lambda: random_crops(pictures, 32, CONFIG.image_size, rng), steps, optimizer, lr)
    return measure(model.eval(), test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="photos")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizer", choices=get_args(OptimizerName), default="adamw")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="CANDIDATE")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the record")
    args = parser.parse_args()
    if "released" not in args.only:
        parser.error("--only: released is expected among them, whose time is that of comparison")
    if len(args.only) < len(CANDIDATES) and args.out == RESULTS:
        parser.error("--only: say --out, as the record there is of all candidates")

    pictures, test_pictures, data = load_pictures(args.data, shorter=128)
    test = random_crops(test_pictures, 48, CONFIG.image_size, np.random.default_rng(0))
    crops = random_crops(pictures, 2000, CONFIG.image_size, np.random.default_rng(1))
    pca = PatchPCA([crops], CONFIG.patch, CONFIG.tintok_dim)
    candidates = {name: CANDIDATES[name] for name in args.only}
    seconds = {name: painting_seconds(candidate) for name, candidate in candidates.items()}

    config = {"steps": args.steps, "seeds": args.seeds, "optimizer": args.optimizer, "lr": args.lr, "batch": 32}
    jobs = [(name, seed) for name in candidates for seed in range(args.seeds)]
    one = partial(run, pictures=pictures, test=test, steps=args.steps, optimizer=args.optimizer, lr=args.lr)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    with ProcessPoolExecutor(args.jobs, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        for job, result in zip(jobs, pool.map(one, jobs), strict=True):
            results[job[0]].append(result)
            print(job, result, flush=True)

    rows = []
    for name, candidate in candidates.items():
        runs = results[name]
        rows.append({
            "candidate": name,
            **{key: round(statistics.mean(run[key] for run in runs), 3) for key in runs[0]},
            "psnr_by_seed": [round(run["psnr"], 3) for run in runs],
            "parameters": sum(p.numel() for p in build(candidate, 0).parameters()),
            "time_against_released": round(seconds[name] / seconds["released"], 2),
        })  # fmt: skip
    figures = {"candidates": rows, "patch_pca_psnr": round(psnr(pca.reconstruct(test), test).mean().item(), 3)}
    write_record(f"modulation_{args.optimizer}", data, config, figures, args.out)


if __name__ == "__main__":
    main()
