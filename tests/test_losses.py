"""The losses against plain formulas and other libraries."""

from __future__ import annotations

import math
from pathlib import Path
from urllib.error import URLError

import lpips
import numpy as np
import pytest
import pytorch_msssim
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from huvr.errors import HuvrError
from huvr.losses import LPIPSLoss, LPIPSNet, distillation_loss, koleo_loss, log_pixel_loss, pixel_loss, ssim_loss
from huvr.metrics import ssim_nhwc

SHARED = Path(__file__).parents[2] / "shared" / "weights"


def pictures(seed: int, size: tuple[int, int] = (48, 40)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, *size, generator=generator)
    return images + 0.2 * torch.randn(images.shape, generator=generator), images


def test_pixel_loss_is_the_squared_error_in_the_space_of_the_paper() -> None:
    painted, images = pictures(0)
    expected = (((2 * painted.numpy() - 1) - (2 * images.numpy() - 1)) ** 2).mean()
    assert pixel_loss(painted, images).item() == pytest.approx(expected, rel=1e-5)


def test_log_pixel_loss_is_the_mean_psnr_but_for_its_sign_and_unit() -> None:
    painted, images = pictures(2)
    painted[1] = images[1] + 0.1 * (painted[1] - images[1])  # 20 dB better than the other
    values = [peak_signal_noise_ratio(*pair, data_range=1.0).item() for pair in zip(painted, images, strict=True)]
    expected = np.mean([math.log(4 * 10 ** (-value / 10) + 4e-5) for value in values])
    assert values[1] - values[0] == pytest.approx(20, abs=1)
    assert log_pixel_loss(painted, images).item() == pytest.approx(expected, rel=1e-5)
    assert log_pixel_loss(images, images).item() == pytest.approx(math.log(4e-5))


def test_ssim_agrees_with_pytorch_msssim() -> None:
    painted, images = pictures(1)
    expected = 1 - pytorch_msssim.ssim(painted, images, data_range=1.0)
    torch.testing.assert_close(ssim_loss(painted, images), expected, rtol=0, atol=1e-5)


def test_ssim_of_the_released_code_is_that_of_channels_last() -> None:
    painted, images = pictures(1)
    with pytest.warns(UserWarning, match="Skipping Gaussian Smoothing"):
        expected = pytorch_msssim.ssim(painted.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1), data_range=1, size_average=False)
    torch.testing.assert_close(ssim_nhwc(painted, images), expected, rtol=0, atol=1e-5)
    with pytest.raises(HuvrError, match="8x8 pixels: sides of at least 11"):
        ssim_nhwc(*pictures(1, (8, 8)))


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


def test_koleo_among_all_processes_is_that_of_their_batches_together() -> None:
    everyone = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    losses = [koleo_loss(features, everyone, rank) for rank, features in enumerate(everyone)]
    total = torch.stack(losses).mean()
    assert total.item() == pytest.approx(koleo_by_hand(everyone.detach().flatten(0, 1).numpy()), rel=1e-5)
    [gradient] = torch.autograd.grad(total, everyone)
    [expected] = torch.autograd.grad(koleo_loss(everyone.flatten(0, 1)), everyone)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_koleo_stays_finite_for_equal_and_single_images() -> None:
    assert koleo_loss(torch.ones(3, 4)).isfinite()
    assert koleo_loss(torch.ones(1, 4)) == 0


@pytest.mark.parametrize("loss", [pixel_loss, log_pixel_loss, ssim_loss, distillation_loss])
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


TRUNKS: dict[LPIPSNet, str] = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}  # in torchvision
COMPARED = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12), "vgg": (3, 8, 15, 22, 29)}  # layers


def lpips_by_hand(net: LPIPSNet, features: nn.Sequential, a: Tensor, b: Tensor) -> Tensor:
    """Formula (1) of Zhang et al.: unit feature vectors, squared differences, weighted channels, mean over places."""
    heads = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    x, y = (((2 * image - 1) - mean) / std for image in (a, b))
    total = torch.zeros(len(a))
    for index, layer in enumerate(features):
        layer = nn.ReLU() if isinstance(layer, nn.ReLU) else layer  # torchvision's works in place
        x, y = layer(x), layer(y)
        if index in COMPARED[net]:
            weight = heads[f"lin{COMPARED[net].index(index)}.model.1.weight"]
            unit = [f / f.square().sum(1, keepdim=True).sqrt().clamp_min(1e-10) for f in (x, y)]
            total += ((unit[0] - unit[1]).square() * weight).sum(1).mean((1, 2))
    return total


@torch.no_grad()
def check_against_the_formula(net: LPIPSNet, file: Path, features: nn.Sequential) -> None:
    painted, images = pictures(4, (64, 64))
    loss, expected = LPIPSLoss(net, str(file)), lpips_by_hand(net, features, painted, images)
    torch.testing.assert_close(loss.distances(painted, images), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss(painted, images), expected.mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("net", "suffix"), [("alex", ".safetensors"), ("squeeze", ".pth"), ("vgg", ".pth")])
def test_lpips_with_a_local_trunk_is_the_published_formula(tmp_path: Path, net: LPIPSNet, suffix: str) -> None:
    torch.manual_seed(0)
    features = getattr(torchvision.models, TRUNKS[net])(weights=None).features
    file, tensors = tmp_path / f"trunk{suffix}", {f"features.{k}": v for k, v in features.state_dict().items()}
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    check_against_the_formula(net, file, features)


@pytest.mark.skipif(not SHARED.exists(), reason="needs real trunks")
@pytest.mark.parametrize(("net", "name"), [("alex", "alexnet_tv_features"), ("squeeze", "squeezenet1_1_tv_features")])
def test_lpips_of_real_trunks_is_the_published_formula(net: LPIPSNet, name: str) -> None:
    file = SHARED / f"{name}.fp16.safetensors"
    features = getattr(torchvision.models, TRUNKS[net])(weights=None).features
    features.load_state_dict({key.removeprefix("features."): tensor.float() for key, tensor in load_file(file).items()})
    check_against_the_formula(net, file, features)


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


@pytest.mark.parametrize(("net", "least"), [("alex", 31), ("squeeze", 17)])
def test_lpips_says_which_images_are_too_small(tmp_path: Path, net: LPIPSNet, least: int) -> None:
    file = tmp_path / "trunk.pth"
    torch.save(getattr(torchvision.models, TRUNKS[net])(weights=None).features.state_dict(), file)
    loss = LPIPSLoss(net, str(file))
    assert loss(*pictures(6, (least, 40))).isfinite()
    with pytest.raises(HuvrError, match=rf"LPIPS {net} of images of 40x{least - 1} pixels: sides of at least {least} are needed"):
        loss(*pictures(6, (40, least - 1)))
