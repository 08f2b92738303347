"""Test-time optimisation: the numbers that an image is drawn from, searched for from those of its encoder on.

An encoder guesses them in one pass. A few steps of descent through the frozen decoder, on the very image, find better ones,
at many times the cost. TransINR does so with its views (arXiv 2208.02801, "test-time optimization").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from huvr.errors import HuvrError

RATE = 0.07  # of Adam, in standard deviations of the numbers of an image
BETAS = (0.7, 0.9)  # for tens of steps, not thousands


def refined(draw: Callable[..., Tensor], start: Sequence[Tensor], images: Tensor, steps: int) -> tuple[Tensor, ...]:
    """Numbers from which the images are drawn with less squared error; no weight changes.

    Each image is on its own: what it ends with does not depend on the others of its batch, and is never worse than its start.
    Works under ``torch.no_grad`` and ``torch.inference_mode`` too, provided that the weights were not made under the latter.

    Args:
        draw: tensors like ``start``, one argument each, to pictures ``(B, 3, H, W)`` in [0, 1].
        start: ``(B, …)`` each, as the encoder gave them, in the precision that ``draw`` takes them in.
        images: ``(B, 3, H, W)`` in [0, 1].
        steps: of Adam, its rate falling to 0 along half a cosine; 0 returns the start.

    Raises:
        HuvrError: for fewer than 0 steps, and numbers of other images than these.
    """
    if steps < 0:
        raise HuvrError(f"refine {steps}: expected a number of steps, 0 or more")
    if any(len(tensor) != len(images) for tensor in start):
        raise HuvrError(f"refine: {len(images)} images, and the numbers of {len(start[0])}: expected as many")
    if not steps:
        return tuple(start)
    with torch.inference_mode(False), torch.enable_grad():
        images, start = images.clone(), [tensor.detach().clone() for tensor in start]
        units = [per_image(tensor.float().flatten(1).std(dim=1), tensor) for tensor in start]
        # in fp32 or better: small moves are lost in half precision
        moves = [torch.zeros_like(old, dtype=torch.promote_types(old.dtype, torch.float), requires_grad=True) for old in start]
        optimizer = Adam(moves, RATE, BETAS)
        schedule = CosineAnnealingLR(optimizer, steps)

        def found() -> list[Tensor]:
            return [(old + unit * move).to(old.dtype) for old, unit, move in zip(start, units, moves, strict=True)]

        def errors() -> Tensor:
            return (draw(*found()) - images).float().square().flatten(1).sum(dim=1)

        first = error = errors()
        for _ in range(steps):
            for move, gradient in zip(moves, torch.autograd.grad(error.sum(), moves), strict=True):
                move.grad = gradient
            optimizer.step()
            schedule.step()
            error = errors()
    better = error < first  # false where the search left the finite numbers
    return tuple(torch.where(per_image(better, old), new, old).detach() for new, old in zip(found(), start, strict=True))


def per_image(values: Tensor, tensor: Tensor) -> Tensor:
    """``(B,)`` in the shape that broadcasts over ``(B, …)``."""
    return values.view(-1, *[1] * (tensor.ndim - 1))
