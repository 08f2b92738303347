"""What mmsegmentation needs of ``mmcv.ops``, in plain PyTorch: mmcv's compiled operators build against no current torch."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import mmcv
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as focal_loss_of_targets


def stand_in() -> None:
    """Make this module ``mmcv.ops`` where the compiled operators are absent."""
    if find_spec("mmcv._ext") is None:
        sys.modules["mmcv.ops"] = mmcv.ops = sys.modules[__name__]


def point_sample(input: Tensor, points: Tensor, align_corners: bool = False, **options: Any) -> Tensor:
    """Values of a map at points between its pixels (PointRend, section 3).

    Args:
        input: ``(N, C, H, W)``.
        points: x and y in [0, 1] of the width and the height, ``(N, P, 2)`` or ``(N, h, w, 2)``.
        align_corners: whether 0 and 1 are the middles of the outermost pixels and not their outer edges.
        options: of ``grid_sample``.

    Returns:
        ``(N, C, P)`` or ``(N, C, h, w)``.
    """
    grid = 2 * (points[:, :, None] if points.ndim == 3 else points) - 1
    sampled = F.grid_sample(input, grid, align_corners=align_corners, **options)
    return sampled[..., 0] if points.ndim == 3 else sampled


def sigmoid_focal_loss(
    input: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """The focal loss of RetinaNet (arXiv 1708.02002), each class against all others, with the arguments of mmcv's.

    Args:
        input: logits ``(N, C)``.
        target: labels ``(N,)``; one that is none of the C classes is background.
        gamma: how strongly what is already right is left out.
        alpha: weight of the right class; the others have ``1 - alpha``.
        weight: of each label, ``(C,)``.
        reduction: "none", "sum", or "mean", which is the sum over the classes, averaged over N.

    Returns:
        ``(N, C)`` for "none", or one number.
    """
    targets = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(input.dtype)
    loss = focal_loss_of_targets(input, targets, alpha, gamma)
    if weight is not None:
        loss = loss * weight[target][:, None]
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / len(loss)}[reduction]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # Python itself asks for these
        raise AttributeError(name)
    message = f"mmcv.ops.{name} is a compiled operator of mmcv, which is not here; huvr has point_sample and sigmoid_focal_loss"
    raise ModuleNotFoundError(message)
