"""k nearest neighbours with DINO's weighting: how well the cls tokens of a class lie together, nothing trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError

from .accuracy import Accuracy
from .base import EncoderConfig, FrozenEncoderTask
from .confusion import report
from .features import FeatureSplit

QUERIES = 1024  # at once; with a piece of the training features, this bounds the memory


class KNN(FrozenEncoderTask):
    """k-NN classification of cls tokens.

    The protocol of DINO: features of length one, the training images most alike by dot product, ``max(k)`` of them, a
    softmax over these similarities, and the first k of them vote with that weight (DINOv2, eval/knn.py).

    Args:
        encoder: the frozen encoder.
        k: numbers of neighbours to measure; accuracies of single classes, and the picture, are of the first.
        temperature: of the softmax.
    """

    def __init__(self, encoder: EncoderConfig, k: tuple[int, ...] = (10, 20, 100, 200), temperature: float = 0.07) -> None:
        super().__init__(encoder)
        if not k or min(k) < 1 or temperature <= 0:
            raise HuvrError(f"k {k}, temperature {temperature}: expected numbers of neighbours from 1 on, and a positive one")
        self.k, self.temperature = k, temperature

    def test_step(self, batch: FeatureSplit, index: int) -> None:
        train = self.trainer.datamodule.train  # type: ignore[attr-defined]
        if max(self.k) > len(train):
            raise HuvrError(
                f"k {max(self.k)}: there are only {len(train)} training images; set fewer neighbours, as in --model.k [1]"
            )
        accuracies = {k: Accuracy(len(train.classes), self.device) for k in self.k}
        for queries, labels in batch.pieces(QUERIES):
            similar, votes = neighbours(queries, train.pieces(), max(self.k))
            for k, scores in ballots(similar, votes, self.k, self.temperature, len(train.classes)):
                accuracies[k].add(scores, labels)
        for k, accuracy in accuracies.items():
            self.log_dict({f"{name}_k{k}": value for name, value in accuracy.metrics().items()}, batch_size=len(batch))
        report(self, accuracies[self.k[0]], batch.classes)


def neighbours(queries: Tensor, pieces: Iterable[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """The most similar training features of each query, best first.

    Args:
        queries: ``(Q, D)``.
        pieces: features ``(n, D)`` and labels ``(n,)``, piece by piece.
        count: how many.

    Returns:
        Cosines ``(Q, count)``, and the labels of these neighbours ``(Q, count)``.
    """
    queries = F.normalize(queries, dim=1)
    similar, labels = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0, dtype=torch.long)
    for features, theirs in pieces:
        similar = torch.cat([similar, queries @ F.normalize(features, dim=1).T], 1)
        labels = torch.cat([labels, theirs.expand(len(queries), -1)], 1)
        similar, order = similar.topk(min(count, similar.shape[1]))
        labels = labels.gather(1, order)
    return similar, labels


def ballots(similar: Tensor, labels: Tensor, ks: Iterable[int], temperature: float, classes: int) -> Iterator[tuple[int, Tensor]]:
    """For each k the votes for every class, ``(Q, classes)``."""
    weights = (similar / temperature).softmax(1)
    for k in ks:
        yield k, weights.new_zeros(len(weights), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
