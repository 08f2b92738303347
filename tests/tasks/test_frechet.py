"""The Fréchet distance against scipy and against a closed form, and its networks against timm and torch-fidelity."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as TF

from huvr.errors import HuvrError
from huvr.tasks import frechet
from huvr.tasks.frechet import FrechetConfig, FrechetNetwork

PICTURES = torch.randint(256, (3, 3, 50, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> FrechetConfig:
    """A small ViT with weights of its own."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    return FrechetConfig("test_vit", str(file), mean=(0.1, 0.2, 0.3))


def distance(vit: FrechetConfig, originals: np.ndarray, drawings: np.ndarray) -> float:
    """As the metric of a network finds it, in batches."""
    metric = FrechetNetwork(vit).distance()
    for real, features in ((True, originals), (False, drawings)):
        for batch in torch.from_numpy(features).split(17):
            metric.update(batch, real=real)
    return metric.compute().item()


def gaussian(mean: np.ndarray, root: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Samples whose own mean is ``mean`` and whose own covariance is ``root @ root.T``, exactly."""
    samples = generator.normal(size=(count, len(mean)))
    samples -= samples.mean(0)
    white = samples @ np.linalg.inv(np.linalg.cholesky(np.cov(samples.T))).T
    return white @ root.T + mean


def test_distance_of_two_gaussians_along_the_axes_is_that_of_the_closed_form(vit: FrechetConfig) -> None:
    generator = np.random.default_rng(0)
    means, deviations = generator.normal(size=(2, 64)), generator.uniform(0.5, 2, (2, 64))
    sets = [gaussian(m, np.diag(d), 200, generator) for m, d in zip(means, deviations, strict=True)]
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert distance(vit, *sets) == pytest.approx(expected, rel=1e-6)


def test_distance_is_that_of_scipys_matrix_root(vit: FrechetConfig) -> None:
    generator = np.random.default_rng(1)
    sets = [generator.normal(size=(150, 64)) @ generator.normal(size=(64, 64)) + shift for shift in (0, 0.5)]
    covariances = [np.cov(each.T) for each in sets]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = sets[0].mean(0) - sets[1].mean(0)
    assert distance(vit, *sets) == pytest.approx(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root), rel=1e-6)
    assert distance(vit, sets[0], sets[0]) == pytest.approx(0, abs=1e-4)


def test_a_network_of_timm_sees_as_it_was_trained_to(vit: FrechetConfig) -> None:
    network = FrechetNetwork(vit)
    model = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay={"file": vit.weights}).eval()
    images = TF.normalize(TF.resize(PICTURES.float() / 255, [160, 160], TF.InterpolationMode.BICUBIC), vit.mean, [0.5] * 3)
    with torch.no_grad():
        torch.testing.assert_close(network(PICTURES), model.forward_features(images)[:, 0], rtol=1e-3, atol=1e-4)
    assert (network.name, network.dim) == ("frechet_test_vit", 64)


def test_only_the_network_of_fid_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FrechetConfig("inception").name == "rfid"
    assert FrechetConfig("inception_v3").name == "frechet_inception_v3"  # timm's, which is another
    with pytest.raises(HuvrError, match=r"frechet.weights hub: no such file; inception needs torch-fidelity's weights-inception"):
        FrechetNetwork(FrechetConfig("inception"))
    other = tmp_path / "other.pth"
    other.write_bytes(b"something else")
    with pytest.raises(HuvrError, match=r"other.pth: not torch-fidelity's weights-.* \(its SHA-256 differs\)"):
        FrechetNetwork(FrechetConfig("inception", str(other)))
    monkeypatch.setattr(frechet, "INCEPTION_SHA256", hashlib.sha256(b"something else").hexdigest())
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(HuvrError, match=r"needs torch-fidelity: pip install 'huvr\[fid\]'"):
        FrechetNetwork(FrechetConfig("inception", str(other)))


def test_the_network_of_fid_is_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
    theirs = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    monkeypatch.undo()
    file = tmp_path / "inception.pth"
    torch.save(theirs.state_dict(), file)
    monkeypatch.setattr(frechet, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    network = FrechetNetwork(FrechetConfig("inception", str(file)))
    torch.testing.assert_close(network(PICTURES), theirs(PICTURES)[0], rtol=1e-4, atol=1e-5)
    assert network.dim == 2048


def test_an_unknown_network() -> None:
    with pytest.raises(HuvrError, match=r"frechet.network \(or 'inception'\): .*'vit_huge' is no timm model"):
        FrechetNetwork(FrechetConfig("vit_huge"))
