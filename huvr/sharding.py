"""Training in shards (FSDP2): every process holds its part of weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from huvr.errors import HuvrError

FORWARD = ("training_step", "validation_step", "test_step", "predict_step", "look")  # what runs a network


class Sharded(ModelParallelStrategy):
    """``--trainer.strategy sharded``: data parallel over all processes, weights in shards, checkpoints in one file.

    Such a checkpoint is as that of one process: one process reads it, and training goes on from it on any number of them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register("sharded", Sharded, description="FSDP2: weights in shards, data parallel over all processes")


def shard(module: LightningModule, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Divide the parameters of ``module`` among the processes of ``mesh``: those of each of its blocks, and the rest.

    Raises:
        HuvrError: with averaged weights, of which Lightning keeps a whole copy.
    """
    if any(isinstance(callback, WeightAveraging) for callback in module.trainer.callbacks):  # type: ignore[attr-defined]
        raise HuvrError("weights in shards cannot be averaged: leave out EMAWeightAveraging, or set trainer.strategy ddp")
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # Resharded even here: pictures are drawn between gradients and step, and whole weights would outlive the step unchanged.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for method in FORWARD:
        register_fsdp_forward_method(module, method)
