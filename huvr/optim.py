"""The optimisers of training and the schedule of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from timm.optim import Muon, muon
from torch import Tensor
from torch.optim import AdamW, Optimizer

OptimizerName = Literal["adamw", "muon"]


class MuonOnCPU(Muon):
    """timm's Muon with its Newton-Schulz iteration in fp32: few processors have arithmetic in bf16, and without it is slow."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        in_fp32 = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)
        with patch.object(muon, "zeropower_via_newtonschulz", in_fp32):  # timm has no option for it
            return super().step(closure)


def make_optimizer(
    name: OptimizerName, parameters: Iterable[Tensor], lr: float, weight_decay: float, betas: tuple[float, float]
) -> Optimizer:
    """AdamW, as in the released recipe, or Muon (Jordan et al., 2024) for all weight matrices and NAdamW for the rest.

    Muon's steps are scaled to the size of AdamW's (Moonlight, arXiv 2502.16982), so one learning rate serves both.
    """
    if name == "adamw":
        return AdamW(parameters, lr, betas, weight_decay=weight_decay)
    parameters = list(parameters)
    kind = MuonOnCPU if all(p.device.type == "cpu" for p in parameters) else Muon
    return kind(parameters, lr, weight_decay, nesterov=True, betas=betas, adjust_lr_fn="match_rms_adamw")


def warmup_cosine(step: int, steps: int, warmup_steps: float, floor: float = 0.0) -> float:
    """Share of the peak learning rate at an optimiser step, counted from 0 (HUVR, appendix on training).

    Linear from 0 over ``warmup_steps``, then half a cosine that reaches ``floor`` at ``steps``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1.0, steps - warmup_steps))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
