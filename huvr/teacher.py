"""Frozen teachers of distillation: any timm network, seen through its own eyes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from textwrap import shorten
from typing import Any

import timm
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.frozen import read_tensors
from huvr.model.encoder import is_vit, tokens_of
from huvr.model.tokens import Tokens

UNGATED = "vit_base_patch14_reg4_dinov2.lvd142m"
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class TeacherConfig:
    """A teacher and how it looks at images.

    Attributes:
        name: a timm network, e.g. ``vit_large_patch16_dinov3.lvd1689m``.
        weights: "hub", or a local ``.safetensors`` or ``.pth`` file with all its tensors (with or without a classifier).
        image_size: side in pixels of what the teacher sees of a square crop, other crops keep their shape at
            the same area. None shows a ViT the size at which its patches are the student's, and any
            other network the crop as it is. A network of one fixed size always sees that.
        mean, std: normalisation of images in [0, 1]; None is the network's own, from timm.
        arguments: of timm.create_model for this network, such as ``{pad_type: same}``.
    """

    name: str
    weights: str = "hub"
    image_size: int | None = None
    mean: RGB | None = None
    std: RGB | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not timm.is_model(self.name):
            near = get_close_matches(self.name, timm.list_models(), n=1, cutoff=0.0)[0]
            raise HuvrError(f"network {self.name!r} is no timm model (the nearest is {near})")
        try:
            get_pretrained_cfg(self.name, allow_unregistered=False)
        except RuntimeError as error:
            raise HuvrError(f"network {self.name!r}: {error}") from None

    @property
    def dim(self) -> int:
        """Numbers per token, known without fetching the weights."""
        with torch.device("meta"):
            return create_network(self.name, **self.arguments).num_features


def create_network(name: str, **arguments: Any) -> Any:
    """A timm network, of any image size where it can."""
    try:
        try:
            return timm.create_model(name, dynamic_img_size=True, **arguments)
        except TypeError:  # not a ViT
            return timm.create_model(name, **arguments)
    except (RuntimeError, TypeError) as error:
        raise HuvrError(f"network {name!r}: {shorten(str(error), 300)}") from None


def pretrained_network(config: TeacherConfig) -> Any:
    """A timm network with weights from the hub or from a file; every tensor has to fit."""
    name = config.name
    if config.weights == "hub":
        rank_zero_info(f"{name}: weights from the Hugging Face hub, or its cache here")
        try:
            return create_network(name, pretrained=True, **config.arguments)
        except OSError as error:
            reason = shorten(str(error), 300)
            raise HuvrError(
                f"the weights of {name} could not be fetched ({reason}): give a local file as its weights, or take "
                f"an ungated network such as {UNGATED}"
            ) from None
    tensors = read_tensors(config.weights, f"weights of {name}")
    heads: Any = get_pretrained_cfg(name).classifier  # type: ignore[union-attr]
    head = tensors.get(f"{heads if isinstance(heads, str) else heads[0]}.bias")  # several in a distilled network
    classes = 0 if head is None else len(head)
    overlay = {"state_dict": tensors, "num_classes": classes}
    return create_network(name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **config.arguments)


class Teacher:
    """A frozen network that turns a student's crop into the tokens the student shall predict.

    It is no ``nn.Module`` on purpose: its parameters belong to no optimiser, no average and no checkpoint.

    Args:
        config: which network.
        device: where it runs.
        bf16: whether its products are computed in bf16, its norms in fp32; else in the precision of its surroundings.

    Raises:
        HuvrError: for a name unknown to timm, weights that cannot be fetched, or a file that does not fit.
    """

    def __init__(self, config: TeacherConfig, device: torch.device | str = "cpu", bf16: bool = False) -> None:
        self.network: Any = pretrained_network(config).eval().requires_grad_(False).to(device)
        self.bf16 = bf16
        if bf16:  # autocast would do so anew for each batch
            for layer in self.network.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(torch.bfloat16)
        own = self.network.pretrained_cfg
        self.mean, self.std = (
            torch.tensor(given or own[key], device=device).view(1, 3, 1, 1)
            for key, given in (("mean", config.mean), ("std", config.std))
        )
        self.image_size = config.image_size
        self.any_size = getattr(self.network, "dynamic_img_size", False) or not own["fixed_input_size"]
        if self.image_size and not self.any_size:
            raise HuvrError(
                f"teacher {config.name} only takes images of {own['input_size'][-1]} pixels: leave out its image_size"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, grid: tuple[int, int]) -> Tokens:
        """Crops ``(B, 3, H, W)`` in [0, 1] to tokens on the student's ``grid``."""
        normalised = (resize(images, self.input_size(images.shape[-2:], grid)) - self.mean) / self.std
        with torch.autocast(images.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            tokens = tokens_of(self.network, normalised)
        patches = resize(tokens.map.float(), grid).flatten(2).transpose(1, 2)
        return replace(tokens, patches=patches, cls=tokens.cls.float(), grid=grid)

    def input_size(self, size: Iterable[int], grid: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels of what the network sees of a crop of that size."""
        height, width = size
        if not self.any_size:
            return self.network.pretrained_cfg["input_size"][1:]
        vit = is_vit(self.network)
        down, across = self.network.patch_embed.feat_ratio(as_scalar=False) if vit else (1, 1)
        if self.image_size:
            scale = self.image_size / (height * width) ** 0.5
            return max(1, round(height * scale / down)) * down, max(1, round(width * scale / across)) * across
        return (grid[0] * down, grid[1] * across) if vit else (height, width)


class Teachers:
    """All teachers of a training, which look once at a batch that is trained on several times (``echoes`` of ``Images``)."""

    def __init__(self, configs: Sequence[TeacherConfig], device: torch.device | str = "cpu", bf16: bool = False) -> None:
        self.teachers = [Teacher(config, device, bf16) for config in configs]
        self._kept: dict[int, list[Tokens]] = {}  # by the number of the batch

    def __call__(self, images: Tensor, grid: tuple[int, int], echo: tuple[int, int] | None = None) -> list[Tokens]:
        """What each teacher says of crops ``(B, 3, H, W)`` in [0, 1].

        Args:
            images: the crops.
            grid: of the student.
            echo: of a batch that is trained on several times, its number and how often it will come again.
        """
        if echo is None:
            return [teacher(images, grid) for teacher in self.teachers]
        number, left = echo
        targets = self._kept.pop(number, None) or self(images, grid)
        if left:
            self._kept[number] = targets
        return targets

    def compile(self) -> None:
        """Have torch compile their blocks, one by one: they share their code."""
        for teacher in self.teachers:
            for block in getattr(teacher.network, "blocks", ()):
                block.compile()

    def forget(self) -> None:
        """Let go of what was kept for batches that do not come again."""
        self._kept.clear()


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resampling of ``(B, C, H, W)``; the same size comes back untouched."""
    if pictures.shape[-2:] == size:
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True)
