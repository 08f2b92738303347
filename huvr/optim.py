"""The schedule of the learning rate."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup_steps: float, floor: float = 0.0) -> float:
    """Share of the peak learning rate at an optimiser step, counted from 0 (HUVR, appendix on training).

    Linear from 0 over ``warmup_steps``, then half a cosine that reaches ``floor`` at ``steps``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1.0, steps - warmup_steps))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
