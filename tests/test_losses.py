"""The losses against plain formulas and other libraries."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import lpips
import numpy as np
import pytest
import pytorch_msssim
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from huvr.errors import HuvrError
from huvr.losses import LPIPSLoss, distillation_loss, koleo_loss, pixel_loss, ssim_loss

SHARED = Path(__file__).parents[2] / "shared" / "weights"


def pictures(seed: int, size: tuple[int, int] = (48, 40)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, *size, generator=generator)
    return images + 0.2 * torch.randn(images.shape, generator=generator), images


def test_pixel_loss_is_the_squared_error_in_the_space_of_the_paper() -> None:
    painted, images = pictures(0)
    expected = (((2 * painted.numpy() - 1) - (2 * images.numpy() - 1)) ** 2).mean()
    assert pixel_loss(painted, images).item() == pytest.approx(expected, rel=1e-5)


def test_ssim_agrees_with_pytorch_msssim() -> None:
    painted, images = pictures(1)
    expected = 1 - pytorch_msssim.ssim(painted, images, data_range=1.0)
    torch.testing.assert_close(ssim_loss(painted, images), expected, rtol=0, atol=1e-5)


def test_distillation_is_the_mean_over_all_numbers() -> None:
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    expected = ((student.numpy() - teacher.numpy()) ** 2).sum() / (2 * 5 * 7)
    assert distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def koleo_by_hand(features: np.ndarray) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(-np.log(distances.min(axis=1)).mean())


def test_koleo_is_the_mean_log_distance_to_the_nearest_neighbour() -> None:
    features = torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    assert koleo_loss(features).item() == pytest.approx(koleo_by_hand(features.double().numpy()), rel=1e-5)


def test_koleo_stays_finite_for_equal_and_single_images() -> None:
    assert koleo_loss(torch.ones(3, 4)).isfinite()
    assert koleo_loss(torch.ones(1, 4)) == 0


@pytest.mark.parametrize("loss", [pixel_loss, ssim_loss, distillation_loss])
def test_losses_of_pictures_ignore_autocast(loss: object) -> None:
    painted, images = pictures(3)
    expected = loss(painted, images)  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(painted, images), expected)  # type: ignore[operator]


def test_koleo_ignores_autocast() -> None:
    features = torch.randn(9, 6)
    expected = koleo_loss(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(koleo_loss(features), expected)


def lpips_by_hand(features: nn.Sequential, last: tuple[int, ...], heads: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Formula (1) of Zhang et al.: unit feature vectors, squared differences, weighted channels, mean over places."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    x, y = (((2 * image - 1) - mean) / std for image in (a, b))
    total = torch.zeros(len(a))
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in last:
            weight = heads[f"lin{last.index(index)}.model.1.weight"]
            unit = [f / f.square().sum(1, keepdim=True).sqrt().clamp_min(1e-10) for f in (x, y)]
            total += ((unit[0] - unit[1]).square() * weight).sum(1).mean((1, 2))
    return total.mean()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_lpips_with_a_local_trunk_is_the_published_formula(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features
    file, tensors = tmp_path / f"trunk{suffix}", {f"features.{k}": v for k, v in features.state_dict().items()}
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    heads = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True)
    painted, images = pictures(4, (64, 64))
    inplace_off = nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in features))
    with torch.no_grad():
        expected = lpips_by_hand(inplace_off, (1, 4, 7, 9, 11), heads, painted, images)
        torch.testing.assert_close(LPIPSLoss("alex", str(file))(painted, images), expected, rtol=1e-4, atol=0)


@pytest.mark.skipif(not SHARED.exists(), reason="needs real trunks")
def test_lpips_of_real_trunks_grows_with_the_damage() -> None:
    painted, images = pictures(5, (64, 64))
    for net, name in (("alex", "alexnet_tv_features"), ("squeeze", "squeezenet1_1_tv_features")):
        loss = LPIPSLoss(net, str(SHARED / f"{name}.fp16.safetensors"))  # type: ignore[arg-type]
        distances = [loss(images + t * (painted - images), images).item() for t in (0.0, 0.3, 1.0)]
        assert distances[0] == pytest.approx(0, abs=1e-6)
        assert distances[0] < distances[1] < distances[2]


def test_lpips_without_weights_names_the_local_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(HuvrError, match=r"vgg weights of LPIPS could not be downloaded .*lpips_trunk"):
        LPIPSLoss()
    with pytest.raises(HuvrError, match="lpips_trunk: no such file"):
        LPIPSLoss("alex", str(tmp_path / "absent.pth"))
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(HuvrError, match=r"not the alex trunk of torchvision, it has no 0\.bias"):
        LPIPSLoss("alex", str(tmp_path / "other.safetensors"))
