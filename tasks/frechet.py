"""Fréchet distance between two sets of images, named after the network whose features are compared.

Two Gaussians are fitted to the features; FID (Heusel et al., arXiv 1706.08500) is this distance on one particular network.
Distances of different networks, and of different numbers of images, cannot be compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from huvr.errors import HuvrError
from huvr.model.encoder import tokens_of
from huvr.teacher import RGB, Teacher, TeacherConfig, resize

INCEPTION = "inception"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class FrechetConfig:
    """The network whose features are compared.

    Attributes:
        network: a timm network by name; or "inception", the one of FID in torch-fidelity's conversion.
        weights: "hub" or a local ``.safetensors`` or ``.pth`` file; of "inception" the file that torch-fidelity publishes.
        mean, std: normalisation of a timm network's images in [0, 1]; None is its own.
        arguments: of timm.create_model for a timm network, such as ``{pad_type: same}``.
    """

    network: str
    weights: str = "hub"
    mean: RGB | None = None
    std: RGB | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the measure, for reconstructions: "rfid" is that of FID's own network."""
        return "rfid" if self.network == INCEPTION else f"frechet_{self.network}"


class FrechetNetwork:
    """Images to the features that are compared.

    Raises:
        HuvrError: for a network timm does not know, and weights that are not to be had or not its own.
    """

    def __init__(self, config: FrechetConfig, device: torch.device | str = "cpu") -> None:
        network: Any = inception(config) if config.network == INCEPTION else TimmFeatures(config)
        self.network = network.eval().requires_grad_(False).to(device)
        self.name, self.dim = config.name, network.num_features

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``(B, 3, H, W)`` of any size to ``(B, D)``."""
        return self.network(images)

    def distance(self) -> FrechetInceptionDistance:
        """A torchmetrics metric, to be updated with features that this network gave."""
        return FrechetInceptionDistance(Given(self.dim))


class TimmFeatures(nn.Module):
    """A timm network as it was trained to see: its own size and normalisation; its cls token, or the mean of its patches."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: FrechetConfig) -> None:
        super().__init__()
        try:
            look = TeacherConfig(config.network, config.weights, None, config.mean, config.std, config.arguments)
            teacher = Teacher(look)
        except HuvrError as error:
            raise HuvrError(f"frechet.network (or {INCEPTION!r}): {error}") from None
        self.network = teacher.network
        self.num_features, self.size = self.network.num_features, self.network.pretrained_cfg["input_size"][1:]
        self.register_buffer("mean", teacher.mean)
        self.register_buffer("std", teacher.std)

    def forward(self, images: Tensor) -> Tensor:
        return tokens_of(self.network, (resize(images.float() / 255, self.size) - self.mean) / self.std).cls.float()


class Given(nn.Module):
    """Features as they are, in place of a network that computes them, so that originals are seen once for all rivals."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def inception(config: FrechetConfig) -> NoTrainInceptionV3:
    """FID's network, with its resampling as in TensorFlow; only from the published file, as torch-fidelity unpickles it."""
    path = Path(config.weights)
    if not path.is_file():
        raise HuvrError(f"frechet.weights {config.weights}: no such file; {INCEPTION} needs torch-fidelity's {INCEPTION_FILE}")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != INCEPTION_SHA256:
            raise HuvrError(f"frechet.weights {path}: not torch-fidelity's {INCEPTION_FILE} (its SHA-256 differs)")
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path), antialias=False)
    except ModuleNotFoundError:
        raise HuvrError(f"frechet.network {INCEPTION} needs torch-fidelity: pip install 'huvr[fid]'") from None
    network.num_features = 2048
    return network
