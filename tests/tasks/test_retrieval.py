"""Retrieval by hand, query by query, and against scikit-learn and FAISS."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from known_features import Known
from torch import Tensor

from huvr.errors import HuvrError
from huvr.tasks import retrieval
from huvr.tasks.base import EncoderConfig
from huvr.tasks.retrieval import Retrieval, average_precision, ranking

Split = tuple[Tensor, Tensor]


def split(count: int, classes: int, seed: int) -> Split:
    """Features that tell a little about their class."""
    torch.manual_seed(seed)
    labels = torch.arange(count) % classes
    return (torch.randn(count, 8) + torch.eye(8)[labels]).half().float(), labels


GALLERY, QUERIES = split(40, 5, 0), split(23, 5, 1)


def measured(quiet: Any, encoder: str, gallery: Split, queries: Split, **options: Any) -> tuple[dict[str, float], Retrieval]:
    task = Retrieval(EncoderConfig(encoder), **options)
    (metrics,) = quiet().test(task, Known(encoder, gallery, queries), verbose=False)
    return metrics, task


def plainly(gallery: Split, queries: Split, leave_one_out: bool = False) -> dict[str, float]:
    """Recall and mAP in per cent, in float64 and loops; the ranks are those of whole numbers, without ties."""
    recalls: dict[int, list[bool]] = {1: [], 5: [], 10: []}
    precisions = []
    for row, (query, label) in enumerate(zip(*queries, strict=True)):
        others = [number for number in range(len(gallery[0])) if not (leave_one_out and number == row)]
        cosines = [float(query.double() @ gallery[0][n].double() / query.norm() / gallery[0][n].norm()) for n in others]
        hits = [bool(gallery[1][others[place]] == label) for place in sorted(range(len(others)), key=lambda n: -cosines[n])]
        if any(hits):
            places = [place for place, hit in enumerate(hits, 1) if hit]
            precisions.append(sum(number / place for number, place in enumerate(places, 1)) / len(places))
            for k, found in recalls.items():
                found.append(any(hits[:k]))
    return {"map": 100 * float(np.mean(precisions))} | {f"recall@{k}": 100 * float(np.mean(v)) for k, v in recalls.items()}


def test_average_precision_by_hand() -> None:
    similar = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.9, 0.5, 0.5, 0.5], [0.9, 0.8, 0.7, 0.6]])
    hits = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]]).bool()
    # (1/1 + 2/3) / 2; a hit that ties with two others counts as the fourth; all of them are hits
    assert average_precision(similar, hits).tolist() == pytest.approx([5 / 6, 1 / 4, 1])


def test_average_precision_is_that_of_scikit_learn_ties_included() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    scores, truth = generator.integers(0, 6, (20, 30)) / 6, generator.random((20, 30)) < 0.3
    similar, order = torch.from_numpy(scores).sort(dim=1, descending=True)
    found = average_precision(similar, torch.from_numpy(truth).gather(1, order))
    expected = [metrics.average_precision_score(t, s) for t, s in zip(truth, scores, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_the_image_itself_comes_last_and_is_no_hit() -> None:
    keys, labels = torch.eye(3), torch.tensor([0, 0, 1])
    similar, hits = ranking(keys[1:2], labels[1:2], keys.split(2), labels, torch.tensor([1]))
    assert similar.tolist() == [[0, 0, -torch.inf]]
    assert hits.tolist() == [[True, False, False]]


@pytest.mark.parametrize("at_once", [2**23, 3 * 40])
def test_the_test_split_searches_the_training_split(
    quiet: Any, encoder: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(retrieval, "SIMILARITIES", at_once)
    metrics, task = measured(quiet, encoder, GALLERY, QUERIES)
    assert metrics == pytest.approx(plainly(GALLERY, QUERIES), rel=1e-5)
    assert task.details == {"index": "exact", "queries": 23, "gallery": 40}


@pytest.mark.parametrize("at_once", [2**23, 3 * 24])
def test_leaving_one_out(quiet: Any, encoder: str, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(retrieval, "SIMILARITIES", at_once)
    alone = torch.cat([QUERIES[0], torch.ones(1, 8)]), torch.cat([QUERIES[1], torch.tensor([5])])  # one of a class of its own
    metrics, task = measured(quiet, encoder, (GALLERY[0], GALLERY[1] + 1), alone, leave_one_out=True)
    assert metrics == pytest.approx(plainly(alone, alone, leave_one_out=True), rel=1e-5)
    assert task.details == {"index": "exact", "queries": 23, "gallery": 24}


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_faiss_finds_the_same(quiet: Any, encoder: str, leave_one_out: bool) -> None:
    pytest.importorskip("faiss")
    exact, _ = measured(quiet, encoder, GALLERY, QUERIES, leave_one_out=leave_one_out)
    found, task = measured(quiet, encoder, GALLERY, QUERIES, leave_one_out=leave_one_out, index="faiss")
    assert found == {name: value for name, value in exact.items() if name != "map"}
    assert task.details["index"] == "faiss"


def test_without_faiss_the_search_is_exact(quiet: Any, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(retrieval, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"FAISS is not installed \(pip install 'huvr\[faiss\]'\): the search is done in torch"):
        metrics, task = measured(quiet, encoder, GALLERY, QUERIES, index="faiss")
    assert metrics == pytest.approx(plainly(GALLERY, QUERIES), rel=1e-5)
    assert task.details["index"] == "exact"


def test_mistakes(quiet: Any, encoder: str) -> None:
    for options, line in (
        ({"k": ()}, r"k \[\]: expected ranks from 1 on"),
        ({"k": (0, 1)}, r"k \[0, 1\]: expected ranks from 1 on"),
        ({"index": "hnsw"}, "index 'hnsw': choose one of exact, faiss"),
    ):
        with pytest.raises(HuvrError, match=line):
            Retrieval(EncoderConfig(encoder), **options)
    with pytest.raises(HuvrError, match="k 41: there are only 40 images to be found"):
        measured(quiet, encoder, GALLERY, QUERIES, k=(41,))
    with pytest.raises(HuvrError, match="k 23: there are only 22 images to be found"):
        measured(quiet, encoder, GALLERY, QUERIES, k=(23,), leave_one_out=True)
    singles = torch.randn(3, 8), torch.arange(3)
    with pytest.raises(HuvrError, match="no class has two images"):
        measured(quiet, encoder, GALLERY, singles, k=(1,), leave_one_out=True)
