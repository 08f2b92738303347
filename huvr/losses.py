"""The losses of pretraining (HUVR, section on training), all computed in fp32.

Images are ``(B, 3, H, W)`` in [0, 1]; what the network paints may leave that range.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import lpips
import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.frozen import read_tensors
from huvr.metrics import ssim

LPIPSNet = Literal["alex", "squeeze", "vgg"]
LPIPS_LEAST: dict[LPIPSNet, int] = {
    "alex": 31,
    "squeeze": 17,
    "vgg": 16,
}  # shortest side in pixels that the poolings leave something of
LEAST_ERROR = 4e-5  # that of 50 dB, in [-1, 1]


@dataclass(frozen=True)
class PaintingWeights:
    """What each loss between picture and drawing counts; one of weight 0 is not computed, but for ``pixel``.

    ``log_pixel`` is its logarithm image by image, see :func:`log_pixel_loss`.
    """

    pixel: float = 1.0
    log_pixel: float = 0.0
    ssim: float = 0.0
    lpips: float = 0.0


@dataclass(frozen=True)
class LossWeights(PaintingWeights):
    """What each loss counts; the defaults are the released recipe. One of weight 0 is not computed, but for ``pixel``.

    ``log_pixel`` is its logarithm image by image, see :func:`log_pixel_loss`. The four places of distillation apply to every
    teacher.
    """

    encoder_cls: float = 4.0
    encoder_patches: float = 4.0
    decoder_cls: float = 1.0
    decoder_patches: float = 1.0
    koleo: float = 0.1


def pixel_loss(painted: Tensor, images: Tensor) -> Tensor:
    """Mean squared error in the [-1, 1] space of the paper, four times that of [0, 1] images."""
    return 4 * F.mse_loss(painted.float(), images.float())


def log_pixel_loss(painted: Tensor, images: Tensor) -> Tensor:
    """Mean over the images of the logarithm of their :func:`pixel_loss`: the loss whose least is the greatest mean PSNR.

    Each image counts the same, where the plain mean is that of the few with most texture. From ``LEAST_ERROR`` on
    an image counts less and less. Source: the PSNR loss of HINet (arXiv 2105.06086).
    """
    errors = 4 * (painted.float() - images.float()).square().mean((1, 2, 3))
    return (errors + LEAST_ERROR).log().mean()


def ssim_loss(painted: Tensor, images: Tensor) -> Tensor:
    """1 - SSIM, see :func:`huvr.metrics.ssim`."""
    return 1 - ssim(painted, images).mean()


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over all numbers of all tokens, features as they are (HUVR, section on distillation)."""
    return F.mse_loss(student.float(), teacher.float())


def koleo_loss(features: Tensor, everyone: Tensor | None = None, rank: int = 0) -> Tensor:
    """Spread ``(B, D)`` features over the sphere: minus the mean log distance to the nearest neighbour.

    Neighbours are looked for in the batch of this process, as in the released code, or among ``everyone``. Then the
    mean of the losses of all processes is the loss of their batches together. A single image has no neighbour and costs nothing.
    Source: Kozachenko-Leonenko entropy estimator, Sablayrolles et al. (arXiv 1806.03198), as in DINOv2.

    Args:
        features: of this process.
        everyone: ``(W, B, D)``, the features of all W processes, through which gradients flow.
        rank: which of them are ``features``.
    """
    together = features if everyone is None else everyone.flatten(0, 1)
    if len(together) < 2:
        return features.float().sum() * 0
    with torch.autocast(features.device.type, enabled=False):
        unit, others = (F.normalize(tensor.float(), eps=1e-8) for tensor in (features, together))
        similarity = unit.detach() @ others.detach().T
        similarity.diagonal(rank * len(features)).fill_(-1)
        return -(F.pairwise_distance(unit, others[similarity.argmax(dim=1)], eps=1e-8) + 1e-8).log().mean()


class LPIPSLoss:
    """Learned perceptual distance (Zhang et al., arXiv 1801.03924); the paper uses the VGG one.

    It is no ``nn.Module`` on purpose: the frozen network belongs to no optimiser and no checkpoint.

    Args:
        net: the trunk, whose weights torchvision downloads unless ``trunk`` is given.
        trunk: a ``.safetensors`` or ``.pth`` file with torchvision's weights of that trunk.
        device: where it runs.

    Raises:
        HuvrError: when the weights cannot be fetched, or the file holds something else.
    """

    def __init__(self, net: LPIPSNet = "vgg", trunk: str | None = None, device: torch.device | str = "cpu") -> None:
        self.net = net
        try:
            with warnings.catch_warnings():  # lpips calls torchvision in an outdated way
                warnings.filterwarnings("ignore", module="torchvision")
                self.network = lpips.LPIPS(net=net, pnet_rand=trunk is not None, verbose=False)
        except OSError as error:
            raise HuvrError(
                f"the {net} weights of LPIPS could not be downloaded ({error}): give a local file as lpips_trunk"
            ) from None
        if trunk is not None:
            self._load_trunk(net, trunk)
        self.network.to(device).requires_grad_(False)

    def _load_trunk(self, net: str, file: str) -> None:
        weights = {name.removeprefix("features."): tensor for name, tensor in read_tensors(file, "lpips_trunk").items()}
        # lpips cuts torchvision's trunk into slices: "slice2.3.weight" is "features.3.weight"
        places = {name: name.split(".", 1)[1] for name in self.network.net.state_dict()}
        missing = sorted(set(places.values()) - set(weights))
        if missing:
            raise HuvrError(f"lpips_trunk {file}: not the {net} trunk of torchvision, it has no {missing[0]}")
        try:
            self.network.net.load_state_dict({name: weights[place] for name, place in places.items()})
        except RuntimeError:
            raise HuvrError(f"lpips_trunk {file}: not the {net} trunk of torchvision, its tensors have other shapes") from None

    def __call__(self, painted: Tensor, images: Tensor) -> Tensor:
        """Mean distance of the batch."""
        return self.distances(painted, images).mean()

    def distances(self, painted: Tensor, images: Tensor) -> Tensor:
        """One distance per image: ``(B,)``.

        Raises:
            HuvrError: for images too small for the trunk.
        """
        height, width = images.shape[-2:]
        if min(height, width) < (least := LPIPS_LEAST[self.net]):
            raise HuvrError(f"LPIPS {self.net} of images of {height}x{width} pixels: sides of at least {least} are needed")
        with torch.autocast(painted.device.type, enabled=False):
            return self.network(painted.float(), images.float(), normalize=True).flatten()
