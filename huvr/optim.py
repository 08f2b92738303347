"""The optimisers of training and the schedule of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal
from unittest.mock import patch

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.optim import Muon, muon
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import ParamsT

from huvr.errors import HuvrError

OptimizerName = Literal["adamw", "muon"]
ALONE = {"adamw": "amsgrad", "muon": "ns_steps"}  # options of the groups of one optimizer


def newton_schulz(gradient: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """timm's, in fp32 on a CPU: few processors have arithmetic in bf16, and without it a step takes ten times as long."""
    dtype = torch.float32 if gradient.device.type == "cpu" else torch.bfloat16
    return zeropower_via_newtonschulz(gradient, *arguments, **{"dtype": dtype} | options)


class PortableMuon(Muon):
    """timm's Muon with :func:`newton_schulz`, for which it has no option."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with patch.object(muon, "zeropower_via_newtonschulz", newton_schulz):
            return super().step(closure)


def make_optimizer(
    name: OptimizerName, parameters: ParamsT, lr: float, weight_decay: float, betas: tuple[float, float]
) -> Optimizer:
    """AdamW, as in the released recipe, or Muon (Jordan et al., 2024) for all weight matrices and NAdamW for the rest.

    AdamW is fused into one kernel. Muon's steps are scaled to the size of AdamW's (Moonlight, arXiv 2502.16982), so one
    learning rate serves both. Each refuses the state of the other.
    """
    optimizer: Optimizer
    if name == "adamw":
        optimizer = AdamW(parameters, lr, betas, weight_decay=weight_decay, fused=True)
        # It could undo the loss scale of fp16 itself; then Lightning refuses to clip, in any mixed precision.
        optimizer._step_supports_amp_scaling = False
    else:
        optimizer = PortableMuon(parameters, lr, weight_decay, nesterov=True, betas=betas, adjust_lr_fn="match_rms_adamw")
    optimizer.register_load_state_dict_pre_hook(refuse_other_state)
    return optimizer


def refuse_other_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Raises HuvrError for the state of the other kind of optimizer, told by an option that it alone has."""
    name, other = ("adamw", "muon") if isinstance(optimizer, AdamW) else ("muon", "adamw")
    if ALONE[other] in state["param_groups"][0]:
        raise HuvrError(f"ckpt_path: trained by {other}, not by {name}: go on with the same optimizer")


def training_steps(trainer: Trainer) -> int:
    """Optimiser steps of the whole training; raises a HuvrError where it has no end, and so no schedule."""
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise HuvrError("training without an end has no schedule: give the trainer max_epochs or max_steps")
    return int(steps)


def scheduled(optimizer: Optimizer, share: Callable[[int], float]) -> OptimizerLRSchedulerConfig:
    """For ``configure_optimizers``: the learning rate times ``share`` of the number of the step, counted from 0."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, share), "interval": "step"}}


def go_on_with(module: LightningModule, lr: float, **options: Any) -> None:
    """For ``on_train_start``: a checkpoint brings the learning rate and options that it was written with; these count instead.

    Args:
        module: one optimiser, and at most one schedule, a LambdaLR.
        lr: learning rate, the schedule's peak where there is one.
        options: of each group of parameters, such as the weight decay.
    """
    optimizer, schedule = module.optimizers(use_pl_optimizer=False), module.lr_schedulers()
    assert isinstance(optimizer, Optimizer)
    if schedule is not None:
        assert isinstance(schedule, LambdaLR)
        schedule.base_lrs = [lr] * len(optimizer.param_groups)
        options, lr = options | {"initial_lr": lr}, lr * schedule.lr_lambdas[0](schedule.last_epoch)
    for group in optimizer.param_groups:
        group |= {"lr": lr, **options}


def warmup_cosine(step: int, steps: int, warmup_steps: float, floor: float = 0.0) -> float:
    """Share of the peak learning rate at an optimiser step, counted from 0 (HUVR, appendix on training).

    Linear from 0 over ``warmup_steps``, then half a cosine that reaches ``floor`` at ``steps``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1.0, steps - warmup_steps))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
