"""What each part of HUVR is worth: the ablations of the paper on one small network, and LIFT's sizes of latents.

    python benchmarks/ablations.py --data PACK/train.parquet --vit FILE --mobilenet FILE --steps 400 --seeds 3

Of a Parquet file of labelled images the last tenth is held out. Each variant is trained on the same crops, its PSNR measured on
held-out ones; recognition is the top-1 accuracy of 20 nearest neighbours (DINO's weighting) among ``--gallery`` training
images, for the global token of the encoder and for its TinTok. A seed is that of the initial weights and of the crops.

Teachers: vit_tiny_patch16_224 and mobilenetv2_100 of timm, trained on the labels of ImageNet; a variant whose teacher's file
is not given is left out. Their tokens differ much in size, so each weight of the released recipe (4, 4, 1, 1) is taken
times 0.015 over the mean variance of the teacher's patch tokens on training crops. KoLeo is off throughout.

Whatever is measured lies in a file in ``--out`` at once: the same command goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from ablation_variants import CONFIG, TEACHERS, VARIANTS, Variant, without_global
from common import RESULTS, random_crops, short, write_record
from lift import BATCH as LIFT_BATCH
from lift import SIDE as LIFT_SIZE
from lift import SMALL as LIFT
from pictures import load_pictures
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from trainings import Crops, Finished, fit

from huvr.hypernets.lift_module import MetaLearning
from huvr.losses import LossWeights
from huvr.model import HUVR
from huvr.pretrain import PLACES, Pretraining, numbered
from huvr.tasks.accuracy import Accuracy
from huvr.tasks.knn import ballots, neighbours
from huvr.teacher import Teacher, TeacherConfig

BATCH = 32
NEIGHBOURS, TEMPERATURE = 20, 0.07
DISTILLATION = 0.015  # of the weights of the released recipe, for tokens of variance one
LATENTS = ((64, 32, 16), (128, 64, 32), (256, 128, 64), (512, 256, 128))  # numbers a cell, coarse to fine, as in the paper
GROUPS = (*dict.fromkeys(variant.group for variant in VARIANTS.values()), "lift")


class Data:
    """Pictures with labels, and the crops and squares that every variant sees."""

    def __init__(self, source: str, gallery: int, queries: int) -> None:
        self.pictures, self.held_out, self.words = load_pictures(source, shorter=round(CONFIG.image_size * 10 / 9))
        labels = torch.tensor(pq.read_table(source, columns=["label"]).column("label").to_pylist())
        chosen = torch.linspace(0, len(self.pictures) - 1, min(gallery, len(self.pictures))).long().tolist()
        self.gallery = squares([self.pictures[number] for number in chosen]), labels[chosen]
        self.queries = squares(self.held_out[:queries]), labels[len(self.pictures) :][:queries]
        self.classes = int(labels.max()) + 1

    def test(self, size: int, pictures: list[Tensor]) -> Tensor:
        return random_crops(pictures, 64, size, np.random.default_rng(0))

    @cached_property
    def lift(self) -> tuple[list[Tensor], list[Tensor]]:
        """The pictures of both splits as small as LIFT wants them."""
        side = [round(LIFT_SIZE * 10 / 9)]
        shrink = lambda picture: TF.resize(picture, side, antialias=True)  # noqa: E731
        return [*map(shrink, self.pictures)], [*map(shrink, self.held_out)]


def squares(pictures: list[Tensor]) -> Tensor:
    """The middle of each, bytes ``(N, 3, S, S)``."""
    return torch.stack([TF.center_crop(picture, [CONFIG.image_size]) for picture in pictures])


@torch.inference_mode()
def global_tokens(net: HUVR, data: Data) -> list[Tensor]:
    """Of the encoder, ``(N, D)``: those of the gallery and of the queries."""
    return [
        torch.cat([net.encode(part.float() / 255).cls for part in images.split(128)])
        for images, _ in (data.gallery, data.queries)
    ]


def knn(features: list[Tensor], data: Data) -> float:
    """Top-1 accuracy in per cent of nearest neighbours, by features ``(N, D)`` of the gallery and of the queries."""
    gallery, queries = features
    count, accuracy = min(NEIGHBOURS, len(gallery)), Accuracy(data.classes, queries.device)
    similar, votes = neighbours(queries, [(gallery, data.gallery[1])], count)
    for _, scores in ballots(similar, votes, [count], TEMPERATURE, data.classes):
        accuracy.add(scores, data.queries[1])
    return round(accuracy.top1, 2)


def variance(teacher: TeacherConfig, images: Tensor) -> float:
    """Of the teacher's patch tokens of images in [0, 1], the mean over their numbers."""
    grid = (images.shape[-2] // CONFIG.patch, images.shape[-1] // CONFIG.patch)
    return Teacher(teacher)(images, grid).patches.flatten(0, 1).var(0).mean().item()


def pretraining(
    variant: Variant, teachers: dict[str, TeacherConfig], variances: dict[str, float], lr: float, seed: int
) -> Pretraining:
    """The training of a variant; ``lr`` is that of a step."""
    released = asdict(LossWeights())
    weights = LossWeights(**{place: released[place] if place in variant.places else 0.0 for place in PLACES}, koleo=0.0)
    module = Pretraining(
        replace(CONFIG, **variant.changes), [teachers[name] for name in variant.teachers], weights, variant.tap,
        optimizer="muon", lr=lr * 256 / BATCH, pictures_every=0,
    )  # fmt: skip
    for number, name in enumerate(variant.teachers):
        for place in module.places:
            module.weights[numbered(place, number)] *= DISTILLATION / variances[name]
    torch.manual_seed(seed)  # here, so that variants with the encoder of the default begin with the same one
    module.net = variant.make(module.net.config)
    return module


def size_of(net: nn.Module, numbers: int) -> dict[str, int]:
    """Numbers an image, and parameters that learn, without the heads that only distillation needs."""
    heads = getattr(net, "distill", nn.Module())
    every, of_heads = (sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (net, heads))
    return {"numbers": numbers, "parameters": every - of_heads}


def measured(variant: Variant, module: Pretraining, data: Data, seed: int, steps: int) -> dict[str, float]:
    """Train a variant and measure it."""
    size, net = CONFIG.image_size, module.net
    curve = fit(module, Crops(data.pictures, size, seed), data.test(size, data.held_out), steps, BATCH)
    numbers = net.config.tintok_dim * ((size // CONFIG.patch) ** 2 + (variant.make is not without_global))
    tokens = global_tokens(net, data)
    with torch.inference_mode():
        tintoks = [net.bottleneck.down(each) for each in tokens]
    return size_of(net, numbers) | {"psnr": curve[-1][1], "knn": knn(tokens, data), "knn_tintok": knn(tintoks, data)}


def lifted(dims: tuple[int, ...], data: Data, seed: int, steps: int) -> dict[str, float]:
    """Train LIFT with latents of so many numbers a cell, coarse to fine, and measure it."""
    latents = tuple((cells, dim) for (cells, _), dim in zip(LIFT.latents, dims, strict=True))
    train, held_out = data.lift
    module = MetaLearning(replace(LIFT, latents=latents), pictures_every=0)
    curve = fit(module, Crops(train, LIFT_SIZE, seed), data.test(LIFT_SIZE, held_out), steps, LIFT_BATCH)
    return size_of(module.net, sum(cells**2 * dim for cells, dim in latents)) | {"psnr": curve[-1][1]}


def row(group: str, name: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    """One line of the table: means over the seeds, and how far the seeds are apart, largest less smallest."""
    line: dict[str, Any] = {"group": group, "variant": name, "numbers": runs[0]["numbers"], "parameters": runs[0]["parameters"]}
    for key in (key for key in runs[0] if key not in line):
        values = [run[key] for run in runs]
        line[key] = round(statistics.mean(values), 3)
        line[f"{key}_spread"] = round(max(values) - min(values), 3)
        line[f"{key}_by_seed"] = values
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a Parquet file of labelled images, whose last tenth is held out")
    parser.add_argument("--vit", help="weights of vit_tiny_patch16_224, mean and std 0.5")
    parser.add_argument("--mobilenet", help="weights of mobilenetv2_100 with pad_type same, mean and std 0.5")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=4e-3, help="of Muon; LIFT has Adam at 1e-3")
    parser.add_argument("--gallery", type=int, default=2000, help="training images that vote")
    parser.add_argument("--queries", type=int, default=900, help="held-out images to be recognised, at most")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    if min(args.steps, args.seeds, args.gallery, args.queries) < 1:
        parser.error("--steps, --seeds, --gallery, --queries: expected 1 or more")
    if {*args.groups} != {*GROUPS} and args.out == RESULTS:
        parser.error("--groups: a part is no record of all of them; give it another --out")
    columns = pq.read_schema(args.data).names if Path(args.data).is_file() else []
    if not {"image", "label"} <= {*columns}:
        parser.error(f"--data {args.data}: expected a Parquet file with the columns image and label")
    torch.set_num_threads(args.threads)
    files = {"vit": args.vit, "mobilenet": args.mobilenet}
    teachers = {name: replace(TEACHERS[name], weights=file) for name, file in files.items() if file}
    data = Data(args.data, args.gallery, args.queries)

    kept = {key: value for key, value in vars(args).items() if key not in ("out", "data", "groups", *files)}
    options = kept | {"data": data.words, "teachers": {name: short(files[name]) for name in teachers}}
    finished = Finished(args.out, "ablations", options)
    crops = random_crops(data.pictures, 64, CONFIG.image_size, np.random.default_rng(1))
    variances = {name: finished(f"variance of {name}", partial(variance, teachers[name], crops)) for name in teachers}

    def of_huvr(variant: Variant, seed: int) -> dict[str, float]:
        return measured(variant, pretraining(variant, teachers, variances, args.lr, seed), data, seed, args.steps)

    def of_lift(dims: tuple[int, ...], seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        return lifted(dims, data, seed, args.steps)

    jobs: dict[str, tuple[str, Callable[[int], dict[str, float]]]] = {
        name: (variant.group, partial(of_huvr, variant))
        for name, variant in VARIANTS.items()
        if {*variant.teachers} <= {*teachers}
    }
    jobs |= {f"LIFT {'/'.join(map(str, dims))}": ("lift", partial(of_lift, dims)) for dims in LATENTS}
    rows = [
        row(group, name, [finished(f"{name}, seed {seed}", partial(job, seed)) for seed in range(args.seeds)])
        for name, (group, job) in jobs.items()
        if group in args.groups
    ]
    config = options | {"batch": BATCH, "lift_batch": LIFT_BATCH, "lift_size": LIFT_SIZE, "network": asdict(CONFIG)}
    write_record("ablations", data.words, config | {"variances": variances, "begun_at": finished.begun_at}, rows, args.out)
    finished.close()


if __name__ == "__main__":
    main()
