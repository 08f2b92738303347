"""How LIFT finds latents: CAVIA (arXiv 1810.03642), a few steps of gradient descent on the latents of each signal alone.

All signals of a batch descend at once: the latents of one do not touch the loss of another, so the gradient of the summed
loss holds the gradient of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.hypernets.lift import LIFT, Latents
from huvr.hypernets.lift_points import Points
from huvr.model.tokens import Tokens


def smoothness(fused: Tensor, dims: int) -> Tensor:
    """Mean squared distance of composite latents ``(B, cells^D, d)`` over all pairs of cells that share a face: ``(B,)``."""
    cells = round(fused.shape[1] ** (1 / dims))
    grid = fused.unflatten(1, [cells] * dims)
    if cells == 1:
        return fused.new_zeros(len(fused))
    return torch.stack([grid.diff(dim=axis).square().sum(-1).flatten(1).mean(1) for axis in range(1, dims + 1)]).mean(0)


def objective(
    model: LIFT, latents: Latents, signals: Tensor, points: Points, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of each signal ``(B,)``, and what was painted ``(B, channels, *sides)``.

    The squared error is the mean over all pixels, or with a ``mask`` ``(B, 1, *sides)`` over those where it is false, and 0
    where there are none.
    """
    fused = model.fuse(latents)
    painted = model.paint(fused, points)
    if mask is None:
        loss = (painted - signals).square().flatten(1).mean(1)
    else:
        numbers = model.config.channels * (~mask).flatten(1).sum(1)
        loss = (painted - signals).masked_fill(mask, 0).square().flatten(1).sum(1) / numbers.clamp_min(1)
    if model.config.smoothness:
        loss = loss + model.config.smoothness * smoothness(fused, model.config.dims)
    return loss, painted


def descend(model: LIFT, signals: Tensor, points: Points, second_order: bool, mask: Tensor | None = None) -> Latents:
    """The inner loop, from zero.

    Args:
        model: whose config says how many steps, and how long.
        signals: ``(B, channels, *sides)``.
        points: the centres of their pixels or voxels.
        second_order: whether the latents remember how they depend on the weights. Otherwise they are constants, as
            first-order meta-learning and encoding want them.
        mask: ``(B, 1, *sides)``, true where a pixel has no say; None lets all have theirs.
    """
    c = model.config
    latents = tuple(signals.new_zeros(len(signals), cells**c.dims, count, requires_grad=True) for cells, count in c.latents)
    # The gradient of a pixel is divided by their number, too small for fp16, and no gradient scaler sees the inner loop. A power
    # of two rounds nothing, and fp16 ends below 2**16.
    scale = min(2.0**15, 2.0 ** round(math.log2(signals[0].numel())))
    for _ in range(c.inner_steps):
        loss, _ = objective(model, latents, signals, points, mask)
        gradients = torch.autograd.grad(scale * loss.sum(), latents, create_graph=second_order)
        latents = tuple(z - c.inner_lr * (gradient / scale) for z, gradient in zip(latents, gradients, strict=True))
        if not second_order:
            latents = tuple(z.detach().requires_grad_() for z in latents)
    return latents


def sides_of(model: LIFT, signals: Tensor) -> tuple[int, ...]:
    """The sides of signals ``(B, channels, *sides)`` that the network can take.

    Raises:
        HuvrError: for signals of another kind, or with a side that the cells do not divide.
    """
    c, sides = model.config, tuple(signals.shape[2:])
    if signals.ndim != c.dims + 2 or signals.shape[1] != c.channels or not signals.is_floating_point():
        expected = f"floating-point (B, {c.channels}, {', '.join('HWD'[: c.dims])})"
        raise HuvrError(f"signals of shape {tuple(signals.shape)}, {signals.dtype}: expected {expected}")
    if any(side < 1 or side % c.places for side in sides):
        raise HuvrError(f"signals of {'x'.join(map(str, sides))}: each side must be a multiple of the {c.places} cells along it")
    return sides


def points_of(model: LIFT, signals: Tensor) -> Points:
    """The centres of the pixels or voxels of signals, checked by :func:`sides_of`."""
    return model.grid(sides_of(model, signals))


def find_latents(model: LIFT, signals: Tensor, mask: Tensor | None = None) -> Latents:
    """The latents of signals ``(B, channels, *sides)`` in [0, 1], as constants; works where gradients are off.

    Where a ``mask`` ``(B, 1, *sides)`` is true, they do not depend on the signals.

    Raises:
        HuvrError: see :func:`sides_of`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        signals = signals.clone()  # what was made in inference mode may not take part in a gradient
        points = points_of(model, signals)
        mask = None if mask is None else mask.clone()
        return tuple(z.detach() for z in descend(model, signals, points, second_order=False, mask=mask))


def encode(model: LIFT, signals: Tensor, mask: Tensor | None = None) -> Tokens:
    """The tokens of signals ``(B, channels, *sides)`` in [0, 1], see :func:`find_latents` and :meth:`LIFT.tokens`."""
    return model.tokens(find_latents(model, signals, mask))


def reconstruct(model: LIFT, signals: Tensor, mask: Tensor | None = None) -> Tensor:
    """The whole chain, unclamped; where a mask hides pixels, they are painted too."""
    return model.render(encode(model, signals, mask), tuple(signals.shape[2:]))


def interpolate(model: LIFT, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """From signals to others through their latents: twice ``(B, channels, *sides)`` to ``(B, steps, channels, *sides)``."""
    ends = encode(model, first), encode(model, second)
    way = [torch.lerp(ends[0].sequence, ends[1].sequence, share) for share in torch.linspace(0, 1, steps).tolist()]
    size = tuple(first.shape[2:])
    return torch.stack([model.render(Tokens.from_sequence(place, ends[0].grid), size) for place in way], dim=1)
