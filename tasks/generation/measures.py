"""How near generated pictures are to real ones, by the features of a network, whose name each measure carries.

Fréchet distance (Heusel et al., arXiv 1706.08500), Inception score (Salimans et al., arXiv 1606.03498), and precision and
recall of manifolds of k nearest neighbours (Kynkäänniemi et al., arXiv 1904.06991). None can be compared across networks,
nor across numbers of pictures.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.inception import InceptionScore

from huvr.data.samples import evenly
from huvr.errors import HuvrError

from .. import cache
from ..frechet import INCEPTION, FrechetConfig, FrechetNetwork, Given, TimmFeatures

NEIGHBOURS = 3  # that span a manifold
MANIFOLD = 10_000  # pictures of each side that span one; ADM's evaluator takes all, which raises the recall
SPLITS = 10  # of the Inception score, at random; ADM's evaluator splits by 5000 pictures in their order
BATCH = 1024  # rows of a matrix of distances
PIECE = 8192  # real features in memory at once


class Seen(NamedTuple):
    """Features ``(B, D)`` fp32, rounded to fp16 as those of real pictures are on the disk, and logits ``(B, classes)``."""

    features: Tensor
    logits: Tensor | None


class Eye(FrechetNetwork):
    """The network that measures; of one with a classifier the answers too.

    Attributes:
        of: what is appended to the name of a measure.
        classes: how many the classifier knows; 0 is none.
    """

    def __init__(self, config: FrechetConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.config, inception = config, config.network == INCEPTION
        self.distance_name = "fid" if inception else self.name
        self.score_name = "inception_score" if inception else f"inception_score_{config.network}"
        self.of = config.network
        self.last: Any = None
        if isinstance(self.network, TimmFeatures):
            self.classes = self.network.network.num_classes
            forward = self.network.network.forward_features

            def remembered(images: Tensor) -> Tensor:
                self.last = forward(images)
                return self.last

            self.network.network.forward_features = remembered  # so that the classifier needs no second pass
        else:
            self.classes = len(self.network.fc.weight)

    def to(self, device: torch.device) -> None:
        self.network.to(device)

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """uint8 ``(B, 3, H, W)`` of any size, on any device."""
        features = self(images.to(next(self.network.parameters()).device))
        logits = None
        if isinstance(self.network, TimmFeatures):
            logits = self.network.network.forward_head(self.last).float() if self.classes else None
        else:
            logits = features @ self.network.fc.weight.T  # torch-fidelity's logits_unbiased
        return Seen(features.half().float(), logits)

    def fingerprint(self) -> str:
        """Of weights, shape and normalisation."""
        digest = hashlib.blake2b(repr((self.config.network, self.config.arguments)).encode(), digest_size=16)
        for name, tensor in sorted(self.network.state_dict().items()):  # mean and std are among them
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


class Reference:
    """The real pictures that others are measured against: features ``(rows, D)`` from the disk.

    Raises:
        HuvrError: for too few of them.
    """

    def __init__(self, eye: Eye, features: np.ndarray) -> None:
        enough(len(features), "real")
        self.eye, self.features = eye, features
        self.distance = eye.distance()
        for piece in pieces_of(features):
            self.distance.update(piece, real=True)

    def some(self, count: int) -> Tensor:
        """That many features, evenly spread, or all."""
        return torch.from_numpy(self.features[evenly(len(self.features), count)].astype(np.float32))


class Scores:
    """What is measured of a set of ``count`` pictures, which comes batch by batch.

    In memory are the features of at most ``MANIFOLD`` pictures, and of all the logits, which torchmetrics collects.
    """

    def __init__(self, reference: Reference, count: int) -> None:
        enough(count, "other")
        self.reference, self.count, self.seen = reference, count, 0
        self.distance = copy.deepcopy(reference.distance)
        self.chosen = np.isin(np.arange(count), evenly(count, MANIFOLD))
        self.kept: list[Tensor] = []
        with warnings.catch_warnings(action="ignore"):  # of the logits
            self.score = InceptionScore(Given(reference.eye.classes), splits=min(SPLITS, count))

    def add(self, seen: Seen) -> None:
        features = seen.features.cpu()
        self.distance.update(features, real=False)
        self.kept.append(features[torch.from_numpy(self.chosen[self.seen : self.seen + len(features)])])
        self.seen += len(features)
        if seen.logits is not None:
            self.score.update(seen.logits.cpu())

    def result(self) -> dict[str, float]:
        """The measures by name."""
        enough(self.seen, "other")
        eye, kept = self.reference.eye, torch.cat(self.kept)
        real = self.reference.some(len(kept))
        found = {eye.distance_name: self.distance.compute().item()}
        found |= {f"precision_{eye.of}": 100 * covered(kept, real), f"recall_{eye.of}": 100 * covered(real, kept)}
        if eye.classes:
            with torch.random.fork_rng(devices=[]):  # the score is of random splits
                torch.manual_seed(0)
                found[eye.score_name] = self.score.compute()[0].item()
        return found


def covered(points: Tensor, by: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Share of ``points`` in the manifold of ``by``: within reach of one of these, as far as its k-th neighbour is.

    Both ``(n, D)``; distances are Euclidean, in fp64, and never more than ``BATCH`` rows of them in memory.
    """
    points, by = points.double(), by.double()
    # A point's nearest is itself.
    reach = torch.cat([torch.cdist(part, by).kthvalue(neighbours + 1).values for part in by.split(BATCH)])
    hits = [(torch.cdist(part, by) <= reach).any(1) for part in points.split(BATCH)]
    return torch.cat(hits).double().mean().item()


def pieces_of(features: np.ndarray) -> Iterator[Tensor]:
    """Features ``(rows, D)`` on the disk in order, fp32."""
    for start in range(0, len(features), PIECE):
        yield torch.from_numpy(features[start : start + PIECE].astype(np.float32))


def enough(count: int, kind: str) -> None:
    if count <= NEIGHBOURS:
        raise HuvrError(f"{count} {kind} pictures: the manifold of {NEIGHBOURS} neighbours needs {NEIGHBOURS + 1} or more")


def real_key(eye: Eye, data: str, size: int) -> dict[str, Any]:
    """All that decides about the features of real pictures, for :mod:`huvr.tasks.cache`."""
    view = f"shorter side {size} bicubic, middle {size}"
    return {"network": eye.fingerprint(), "feature": "frechet", "data": data, "view": view}


def real_entry(folder: Path, key: dict[str, Any], capacity: int, pieces: Iterable[cache.Entry]) -> cache.Entry:
    """Features and row numbers of real pictures from ``folder``, computed first where it lacks them."""
    if (entry := cache.find(folder, key)) is None:
        cache.store(folder, key, capacity, pieces)
        entry = cache.find(folder, key)
    if entry is None:
        raise HuvrError(f"{folder}: the features written there a moment ago are gone")
    return entry
