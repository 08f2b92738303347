"""Checkpoints of mmengine 0.10 hold the history of a run beside the weights, which torch 2.6 and newer refuse to read."""

from __future__ import annotations

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray

STATISTICS = ("min", "max", "current", "mean")
ARRAYS: list[Any] = [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype]
NUMBERS: list[Any] = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)]


def allow() -> None:
    """Let ``torch.load`` read that history; nothing in a file is executed all the same."""
    torch.serialization.add_safe_globals([HistoryBuffer, (statistic, "builtins.getattr"), *ARRAYS, *NUMBERS])


def statistic(owner: Any, name: str) -> Callable[..., float]:
    """All of ``getattr`` that a history needs, which names its methods so.

    Raises:
        UnpicklingError: for anything else.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise UnpicklingError(f"a checkpoint of mmengine asks for {name} of {owner}, expected {', '.join(STATISTICS)}")
    return getattr(owner, name)
