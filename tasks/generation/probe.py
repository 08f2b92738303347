"""How good a generator's pictures are: near real ones, of the class asked for, and not copied from the training images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchvision.utils import make_grid

from huvr.data.samples import evenly
from huvr.errors import HuvrError
from huvr.viz import save_png, to_uint8

from ..accuracy import Accuracy
from ..base import Precision
from ..cache import Entry
from ..frechet import FrechetConfig
from ..knn import neighbours
from ..labelled import fingerprint, labels_of
from .generator import load_generator
from .measures import Eye, Reference, Scores, Seen, pieces_of, real_entry, real_key
from .real import RealPictures
from .recognition import Classifier
from .sampling import Sampling

SHOWN = 32  # samples in the picture of the run folder
UNSEEN = "held-out images"
DRAWN = "reconstructions of held-out images"


class Generated(LightningModule):
    """Pictures of a generator beside real ones.

    Everything is measured against the images that the generator learned: Fréchet distance, precision, recall, Inception
    score, each named after the network. ``details["rivals"]`` has the same of held-out images, and of these drawn from their
    latents, which no generator of these latents can be expected to beat. There are as many samples as held-out images, with
    their labels, unless ``samples`` says otherwise; distances of other numbers cannot be compared.

    ``recognised`` is the share of samples that a logistic regression on the same features, learned from the training
    images, takes for their class. ``nearest.png`` in the run folder shows samples, each with the training image whose
    features are most alike by their cosine on its right.

    Args:
        generator: a run of ``huvr fit --config generate/…``, or a checkpoint of one.
        frechet: the network that looks at the pictures.
        sampling: how to sample.
        samples: how many.
        seed: of their noise.
        batch_size: samples at once.
        precision: "bf16" runs the transformer under autocast.
        decoder: whatever ``huvr.load`` opens, to draw with in place of the network that the generator names.
        beside: whether to measure held-out images and their reconstructions too.

    Raises:
        HuvrError: for a generator or network that cannot be loaded; on setup, for data of other classes.
    """

    lower_is_better = True

    def __init__(
        self,
        generator: str = "",
        frechet: FrechetConfig = FrechetConfig("inception"),  # noqa: B008 (frozen)
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        samples: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        precision: Precision = "fp32",
        decoder: str | None = None,
        beside: bool = True,
    ) -> None:
        super().__init__()
        if not generator:
            raise HuvrError("which generator? --generator with a run of huvr fit --config generate/…, or a checkpoint of one")
        if batch_size < 1 or (samples is not None and samples < 1):
            raise HuvrError(f"samples {samples}, batch_size {batch_size}: expected 1 or more")
        self.generator = load_generator(generator, decoder)
        self.plan = sampling.plan(self.generator.objective)
        self.eye = Eye(frechet)
        self.headline = self.eye.distance_name
        self.sampling, self.samples, self.seed, self.batch_size = sampling, samples, seed, batch_size
        self.precision: Precision = precision
        self.beside = beside
        self.details: dict[str, Any] = {}

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.generator.space.grid[0] * self.generator.codec.patch

    @property
    def data(self) -> RealPictures:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, RealPictures):
            raise HuvrError("data: generation is measured on huvr.tasks.generation.real.RealPictures")
        return data

    def setup(self, stage: str) -> None:
        learned, data = self.generator.space.classes, self.data
        # Labels that are bare numbers may end earlier in the held-out split.
        for rows, found, least in ((data.train, data.classes, len(learned)), (data.test, data.test_classes, 1)):
            if learned and (len(found) < least or found != learned[: len(found)]):
                raise HuvrError(f"{rows.source}: {named(found)}; the generator knows {named(learned)}")
        device = self.trainer.strategy.root_device
        self.generator.to(device)
        self.eye.to(device)

    def on_test_start(self) -> None:
        data, rows = self.data, self.data.train
        key = real_key(self.eye, fingerprint(rows), self.size)
        self.entry = real_entry(data.cache, key, len(rows), self._computed(data.loader(rows)))
        reference = Reference(self.eye, self.entry.features)
        labels, classes = labels_of(rows)[self.entry.labels], len(self.generator.space.classes)
        self.classifier = Classifier(self.entry.features, labels, classes, self.device) if classes else None
        self.labels = torch.from_numpy(labels_of(data.test))
        # Evenly spread over the held-out images, so that both have the same share of each class.
        self.count = self.samples or len(data.test)
        self.wanted = self.labels[torch.arange(self.count) * len(self.labels) // self.count]
        counts = {"samples": self.count} | (dict.fromkeys((UNSEEN, DRAWN), len(data.test)) if self.beside else {})
        self.scores = {name: Scores(reference, count) for name, count in counts.items()}
        self.accuracies = {name: Accuracy(classes, self.device) for name in counts} if classes else {}

    def _computed(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[Entry]:
        for batch in batches:
            if batch:
                yield Entry(self.eye.see(batch["image"]).features.half().cpu().numpy(), batch["row"].numpy())

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        if not (batch and self.beside):
            return
        images = batch["image"]
        labels = self.labels[batch["row"].cpu()]
        space = self.generator.space
        latents = space.normalise(self.generator.codec.look(images.float() / 255).sequence)
        self._add(UNSEEN, self.eye.see(images), labels)
        self._add(DRAWN, self.eye.see(to_uint8(self.generator.draw(latents))), labels)

    def _add(self, name: str, seen: Seen, labels: Tensor) -> None:
        self.scores[name].add(seen)
        if self.classifier:
            self.accuracies[name].add(self.classifier(seen.features), labels.to(seen.features.device))

    def on_test_epoch_end(self) -> None:
        pairs = self._sampled()
        results = {name: score.result() for name, score in self.scores.items()}
        for name, accuracy in self.accuracies.items():
            results[name]["recognised"] = accuracy.top1
        self.log_dict(results.pop("samples"))
        sampler, steps = self.plan
        data, space = self.data, self.generator.space
        self.details |= {
            "encoder": space.encoder,
            "tokens": self.generator.codec.tokens,
            "data": {"train": f"{data.train.source}, {len(self.entry.labels)} images"}
            | ({"test": f"{data.test.source}, {self.scores[UNSEEN].seen} images"} if self.beside else {})
            | {"view": f"middle {self.size}"},
            "samples": self.count,
            "sampling": asdict(self.sampling) | {"sampler": sampler, "steps": steps},
            "rivals": {name: {"bytes_per_image": None, "metrics": metrics} for name, metrics in results.items()},
            "nearest": f"by the cosine of features of {self.eye.of}",
        }
        if self.trainer.is_global_zero:
            save_png(make_grid(pairs, nrow=8), Path(self.trainer.default_root_dir) / "nearest.png")

    def _sampled(self) -> list[Tensor]:
        """Measure the samples; some of them, each followed by its nearest training image, uint8 ``(3, H, W)``."""
        conditional = bool(self.generator.space.classes)
        drawn = self.generator.pictures(
            self.count, self.wanted.tolist() if conditional else None, self.sampling, self.seed, self.batch_size,
            precision=self.precision,
        )  # fmt: skip
        shown = {*evenly(self.count, SHOWN).tolist()}
        pictures: list[Tensor] = []
        features: list[Tensor] = []
        seconds, start, first = 0.0, time.perf_counter(), 0
        while batch := list(itertools.islice(drawn, self.batch_size)):
            images = to_uint8(torch.stack(batch))  # waits for the device
            seconds += time.perf_counter() - start
            seen, numbers = self.eye.see(images), range(first, first + len(images))
            self._add("samples", seen, self.wanted[first : first + len(images)])
            chosen = [number - first for number in numbers if number in shown]
            pictures += [*images[chosen]]
            features.append(seen.features[chosen])
            first, start = numbers.stop, time.perf_counter()
        self.details["samples_per_second"] = round(self.count / seconds, 3)
        _, places = neighbours(torch.cat(features), self._numbered(), 1)
        rows = self.entry.labels[places[:, 0].cpu().numpy()]
        return [each for pair in zip(pictures, map(self.data.picture, rows.tolist()), strict=True) for each in pair]

    def _numbered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training features with their places, piece by piece."""
        first = 0
        for piece in pieces_of(self.entry.features):
            yield piece.to(self.device), torch.arange(first, first + len(piece), device=self.device)
            first += len(piece)


def named(names: list[str]) -> str:
    """Names of classes for an error."""
    return f"{len(names)} classes" + (f" ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else "")
