"""k-NN against the formula written out, query by query."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from huvr.tasks.accuracy import Accuracy
from huvr.tasks.knn import ballots, neighbours


def plainly(queries: torch.Tensor, train: torch.Tensor, labels: torch.Tensor, k: int, most: int, classes: int) -> torch.Tensor:
    """Votes of DINO's k-NN with temperature 0.07, in float64 and loops."""
    votes = torch.zeros(len(queries), classes, dtype=torch.float64)
    for row, query in enumerate(queries.double()):
        cosines = [float(query @ each / query.norm() / each.norm()) for each in train.double()]
        best = sorted(range(len(train)), key=lambda number: -cosines[number])[:most]
        total = sum(math.exp(cosines[number] / 0.07) for number in best)
        for number in best[:k]:
            votes[row, labels[number]] += math.exp(cosines[number] / 0.07) / total
    return votes


@pytest.mark.parametrize("piece", [7, 20, 60])
def test_votes_are_those_of_the_formula_whatever_the_pieces(piece: int) -> None:
    torch.manual_seed(0)
    train, labels, queries = torch.randn(60, 8), torch.randint(5, (60,)), torch.randn(9, 8)
    pieces = list(zip(train.split(piece), labels.split(piece), strict=True))
    similar, theirs = neighbours(queries, pieces, 20)
    assert similar.shape == theirs.shape == (9, 20)
    for k, votes in ballots(similar, theirs, (1, 10, 20), 0.07, 5):
        torch.testing.assert_close(votes.double(), plainly(queries, train, labels, k, 20, 5), rtol=1e-4, atol=1e-5)


def test_votes_are_those_of_scikit_learn() -> None:
    """Its brute-force cosine search, with DINO's weights. Its shares are of the first k alone, hence the scale."""
    classifiers = pytest.importorskip("sklearn.neighbors")
    torch.manual_seed(0)
    labels = torch.arange(200) % 6
    train, queries = torch.randn(200, 12) + 0.5 * torch.eye(12)[labels], torch.randn(50, 12)
    similar, theirs = neighbours(queries, zip(train.split(64), labels.split(64), strict=True), 40)
    weigh = {"weights": lambda distances: np.exp((1 - distances) / 0.07), "metric": "cosine", "algorithm": "brute"}
    for k, votes in ballots(similar, theirs, (1, 5, 40), 0.07, 6):
        reference = classifiers.KNeighborsClassifier(k, **weigh).fit(train.double().numpy(), labels.numpy())
        shares = reference.predict_proba(queries.double().numpy())
        np.testing.assert_allclose((votes / votes.sum(1, keepdim=True)).numpy(), shares, atol=1e-5)
        assert (votes.argmax(1).numpy() == reference.predict(queries.double().numpy())).all()


def test_accuracy_by_hand() -> None:
    accuracy = Accuracy(7, torch.device("cpu"))
    order = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [2, 0, 1, 3, 4, 5, 6]])
    scores = torch.zeros(4, 7).scatter_(1, order, torch.arange(7.0, 0, -1).expand(4, -1))
    accuracy.add(scores[:3], torch.tensor([0, 0, 0]))  # right, second, last
    accuracy.add(scores[3:], torch.tensor([2]))
    assert (accuracy.top1, accuracy.top5) == (50, 75)
    assert accuracy.per_class() == [pytest.approx(100 / 3), None, 100, None, None, None, None]


def test_with_three_classes_top5_is_everything_and_not_told() -> None:
    accuracy = Accuracy(3, torch.device("cpu"))
    accuracy.add(torch.eye(3), torch.tensor([1, 2, 0]))
    assert (accuracy.top1, accuracy.top5) == (0, 100)
    assert accuracy.metrics() == {"top1": 0, "mean_per_class": 0}
