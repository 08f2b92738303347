"""k-NN and logistic regression on features that are known: all, nothing, and an optimum found in another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from known_features import Known
from scipy.optimize import minimize
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.tasks.base import EncoderConfig
from huvr.tasks.knn import KNN
from huvr.tasks.logistic import Logistic

CLASSES = 10


def measured(task: Any, data: Known, quiet: Any, epochs: int = 20) -> dict[str, float]:
    trainer = quiet(max_epochs=epochs)
    if isinstance(task, Logistic):
        trainer.fit(task, datamodule=data)
    (metrics,) = trainer.test(task, datamodule=data, verbose=False)
    return metrics


def both(encoder: str) -> tuple[KNN, Logistic]:
    torch.manual_seed(0)
    return KNN(EncoderConfig(encoder), k=(10,)), Logistic(EncoderConfig(encoder))


def test_features_that_hold_the_label_give_all(encoder: str, quiet: Any) -> None:
    labels = torch.arange(500) % CLASSES
    features = F.one_hot(labels, 16).float() + 0.1 * torch.randn(500, 16)
    data = Known(encoder, (features[:300], labels[:300]), (features[300:], labels[300:]))
    knn, logistic = (measured(task, data, quiet) for task in both(encoder))
    assert (knn["top1_k10"], knn["top5_k10"]) == (100, 100)
    assert (logistic["top1"], logistic["top5"]) == (100, 100)


def test_features_that_hold_nothing_stay_at_chance(encoder: str, quiet: Any) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(2000, 16), torch.randint(CLASSES, (2000,))
    data = Known(encoder, (features[:1000], labels[:1000]), (features[1000:], labels[1000:]))
    knn, logistic = (measured(task, data, quiet) for task in both(encoder))
    for top1, top5 in ((knn["top1_k10"], knn["top5_k10"]), (logistic["top1"], logistic["top5"])):
        assert abs(top1 - 10) < 4  # four standard deviations of 1000 guesses
        assert abs(top5 - 50) < 7


def test_logistic_regression_finds_the_optimum(encoder: str, quiet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against scipy's minimiser on the loss as it stands in a textbook; the classes overlap, so there is one optimum."""
    torch.manual_seed(0)
    labels = torch.randint(3, (150,))
    features = (torch.randn(150, 4) + 1.2 * F.one_hot(labels, 4)).half()
    data = Known(encoder, (features, labels), (features, labels))
    monkeypatch.setattr(data.train, "pieces", lambda: type(data.train).pieces(data.train, 37))  # gradients add up over pieces
    task = both(encoder)[1]
    measured(task, data, quiet, epochs=40)

    x, truth = features.double().numpy(), np.eye(3)[labels.numpy()]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)

    def probabilities(numbers: np.ndarray) -> np.ndarray:
        logits = x @ numbers[:12].reshape(4, 3) + numbers[12:]
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    best = minimize(lambda numbers: -(truth * np.log(probabilities(numbers))).sum(1).mean(), np.zeros(15), method="BFGS").x
    with torch.no_grad():
        found = task(features.float()).softmax(1)
    np.testing.assert_allclose(found.numpy(), probabilities(best), atol=2e-3)


def test_logistic_regression_is_that_of_scikit_learn(encoder: str, quiet: Any) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(0)
    labels = torch.randint(4, (600,))
    features = (torch.randn(600, 8) + 1.5 * F.one_hot(labels, 8)).half().float()
    train, test = (features[:400], labels[:400]), (features[400:], labels[400:])
    task = both(encoder)[1]
    found = measured(task, Known(encoder, train, test), quiet, epochs=40)["top1"]

    x, y = F.normalize(train[0].double()).numpy(), train[1].numpy()
    reference = linear_model.LogisticRegression(C=1e8, tol=1e-10, max_iter=5000).fit(x, y)
    assert found == pytest.approx(100 * reference.score(F.normalize(test[0].double()).numpy(), test[1].numpy()), abs=0.51)
    with torch.no_grad():
        loss = F.cross_entropy(task(train[0]), train[1]).item()
    optimum = -np.log(reference.predict_proba(x)[np.arange(400), y]).mean()
    assert loss == pytest.approx(optimum, abs=1e-4)


def test_per_class_accuracy_goes_with_the_names(encoder: str, quiet: Any) -> None:
    """Two classes that cannot be told apart and one that can, none of it in the test but for the first two."""
    train = torch.eye(4)[[0, 0, 0, 1]].repeat(5, 1), torch.tensor([0, 0, 1, 2]).repeat(5)
    data = Known(encoder, train, (torch.eye(4)[[0, 0]], torch.tensor([0, 1])))
    task = both(encoder)[1]
    metrics = measured(task, data, quiet)
    assert task.details["top1_per_class"] == {"0": 100, "1": 0, "2": None}
    assert metrics == {"top1": 50, "mean_per_class": 50}  # of the classes that have images


def test_more_neighbours_than_images_are_refused(encoder: str, quiet: Any) -> None:
    few = torch.randn(12, 4), torch.arange(12) % 3
    with pytest.raises(HuvrError, match="k 200: there are only 12 training images"):
        measured(KNN(EncoderConfig(encoder)), Known(encoder, few, few), quiet)
    with pytest.raises(HuvrError, match=r"k \(0,\)"):
        KNN(EncoderConfig(encoder), k=(0,))
    with pytest.raises(HuvrError, match="lr -1"):
        Logistic(EncoderConfig(encoder), lr=-1)
