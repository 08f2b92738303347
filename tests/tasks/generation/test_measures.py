"""Measures against plain numpy, scipy and timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn
from torchvision.transforms.v2 import functional as TF

from huvr.data.samples import evenly
from huvr.errors import HuvrError
from huvr.tasks import frechet
from huvr.tasks.cache import Entry
from huvr.tasks.frechet import FrechetConfig
from huvr.tasks.generation import measures
from huvr.tasks.generation.measures import Eye, Reference, Scores, Seen, covered, real_entry, real_key
from huvr.tasks.generation.recognition import Classifier

PICTURES = torch.randint(256, (6, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> FrechetConfig:
    """A small ViT with weights of its own, and a classifier."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    nn.init.normal_(model.head.weight)  # so that its answers differ
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), file)
    return FrechetConfig("test_vit", str(file))


@pytest.fixture
def eye(vit: FrechetConfig) -> Eye:
    return Eye(vit)


def in_manifold(points: np.ndarray, by: np.ndarray) -> float:
    """The definition, one pair after the other."""
    reach = [sorted(np.linalg.norm(one - other) for other in by)[3] for one in by]  # the first is itself
    return float(np.mean([any(np.linalg.norm(p - one) <= far for one, far in zip(by, reach, strict=True)) for p in points]))


def test_manifolds_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "BATCH", 7)
    generator = np.random.default_rng(0)
    for shift in (0.0, 1.0, 2.0):
        real, other = generator.normal(size=(50, 3)), generator.normal(shift, 0.7, (60, 3))
        for points, by in ((real, other), (other, real)):
            assert covered(torch.from_numpy(points), torch.from_numpy(by)) == pytest.approx(in_manifold(points, by))


def test_manifold_of_points_on_a_line() -> None:
    """Four points at 0, 1, 2 and 4 reach 4, 3, 2 and 4 far: from -4 to 8."""
    by = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    assert covered(torch.tensor([[-4.1], [-3.9], [7.9], [8.1]]), by) == 0.5


def test_frechet_distance_precision_and_recall_of_a_set(eye: Eye, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "PIECE", 33)
    generator = np.random.default_rng(0)
    real = generator.normal(size=(90, 64)).astype(np.float16)
    other = (generator.normal(size=(80, 64)) * generator.uniform(0.5, 1, 64) + 0.2).astype(np.float16)
    scores = Scores(Reference(eye, real), 80)
    for batch in torch.from_numpy(other).float().split(33):
        scores.add(Seen(batch, torch.zeros(len(batch), 1000)))
    covariances = [np.cov(each.T.astype(float)) for each in (real, other)]
    shift = real.mean(0, dtype=float) - other.mean(0, dtype=float)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    found = scores.result()
    assert found.keys() == {
        "frechet_test_vit", "precision_test_vit", "recall_test_vit", "inception_score_test_vit"
    }  # fmt: skip
    expected = shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found["frechet_test_vit"] == pytest.approx(expected, rel=1e-5)
    equal = real[np.linspace(0, 90, 80, False, dtype=int)].astype(float)  # as many of each
    assert found["precision_test_vit"] == pytest.approx(100 * in_manifold(other.astype(float), equal))
    assert found["recall_test_vit"] == pytest.approx(100 * in_manifold(equal, other.astype(float)))
    assert found["inception_score_test_vit"] == pytest.approx(1)  # answers that never differ


def test_manifolds_of_many_are_those_of_some(eye: Eye, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MANIFOLD", 20)
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    scores = Scores(Reference(eye, features.half().numpy()), 50)
    for batch in features.split(13):
        scores.add(Seen(batch, None))
    assert torch.equal(torch.cat(scores.kept), features[evenly(50, 20)])


def test_the_network_sees_and_answers_as_timm_does(eye: Eye, vit: FrechetConfig) -> None:
    model = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay={"file": vit.weights}).eval()
    images = TF.normalize(TF.resize(PICTURES.float() / 255, [160, 160], TF.InterpolationMode.BICUBIC), [0.5] * 3, [0.5] * 3)
    seen = eye.see(PICTURES)
    with torch.no_grad():
        torch.testing.assert_close(seen.features, model.forward_features(images)[:, 0], rtol=2e-3, atol=2e-3)
        assert seen.logits is not None
        torch.testing.assert_close(seen.logits, model(images), rtol=1e-3, atol=1e-2)
    assert torch.equal(seen.features, seen.features.half().float())


def test_inception_score_by_its_formula(eye: Eye, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "SPLITS", 1)
    scores = Scores(Reference(eye, np.random.default_rng(0).normal(size=(9, 64)).astype(np.float16)), 6)
    seen = eye.see(PICTURES)
    for part in (slice(0, 4), slice(4, 6)):
        scores.add(Seen(seen.features[part], seen.logits[part]))  # type: ignore[index]
    share = seen.logits.double().softmax(1).numpy()  # type: ignore[union-attr]
    expected = np.exp((share * (np.log(share) - np.log(share.mean(0)))).sum(1).mean())
    assert expected > 1.01
    assert scores.result()["inception_score_test_vit"] == pytest.approx(expected, rel=1e-4)


class Fids(nn.Module):
    """In place of the network of FID."""

    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2, 3))[:, None] / 255 * torch.arange(1.0, 6)


def test_only_the_network_of_fid_gives_fid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "inception", lambda config: Fids())
    eye = Eye(FrechetConfig("inception"))
    assert (eye.distance_name, eye.score_name, eye.of, eye.classes) == ("fid", "inception_score", "inception", 4)
    seen = eye.see(PICTURES)
    assert seen.logits is not None
    torch.testing.assert_close(seen.logits, seen.features @ eye.network.fc.weight.T, rtol=1e-3, atol=1e-3)  # no bias


def test_features_of_real_pictures_are_computed_once(eye: Eye, vit: FrechetConfig, tmp_path: Path) -> None:
    asked: list[int] = []

    def pieces() -> Any:
        asked.append(1)
        yield Entry(np.ones((3, 64), np.float16), np.array([0, 1, 4]))

    for config, data, size in (
        (vit, "a", 32), (vit, "a", 32), (vit, "b", 32), (vit, "a", 48),
        (FrechetConfig("test_vit", vit.weights, mean=(0.1, 0.2, 0.3)), "a", 32),
    ):  # fmt: skip
        entry = real_entry(tmp_path, real_key(Eye(config), data, size), 5, pieces())
        assert entry.labels.tolist() == [0, 1, 4]
    assert len(asked) == 4


def test_too_few(eye: Eye) -> None:
    with pytest.raises(HuvrError, match=r"3 real pictures: the manifold of 3 neighbours needs 4 or more"):
        Reference(eye, np.ones((3, 64), np.float16))


def test_the_classifier_is_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "PIECE", 100)
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=400)
    features = (generator.normal(size=(400, 4)) + np.eye(4)[labels]).astype(np.float16)
    with torch.inference_mode():  # as Lightning tests
        ours = Classifier(features, labels, 3, torch.device("cpu"))(torch.from_numpy(features).float()).softmax(1)
    unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(unit, labels).predict_proba(unit)
    assert np.allclose(ours.numpy(), theirs, atol=2e-3)
