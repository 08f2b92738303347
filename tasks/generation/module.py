"""Training of a generator: a diffusion transformer learns the TinToks of a frozen HUVR network."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchvision.utils import make_grid

from huvr.data.loader import Batch
from huvr.data.samples import seed_of
from huvr.errors import HuvrError, require
from huvr.optim import OptimizerName, go_on_with, make_optimizer, scheduled, training_steps
from huvr.viz import to_uint8

from .dit import DiT, DiTConfig
from .generator import KEY, Generator, ObjectiveName, describe, make_network, make_objective
from .latents import Latents
from .sampling import Sampling
from .space import LatentSpace

PICTURED = 16  # samples in the grid of TensorBoard


class Generation(LightningModule):
    """Trains a DiT on the latents of :class:`Latents`.

    A checkpoint holds all that ``huvr generate`` needs but the encoder, which it names and knows by its fingerprint. An
    ``EMAWeightAveraging`` among the trainer's callbacks averages the weights; samples are drawn with the average.

    Args:
        encoder: whatever ``huvr.load`` opens, ``lift:RUN`` (:mod:`.lift_codec`), or ``pca:FILE`` (:mod:`.codec`); frozen, and no
            part of training where latents are on the disk.
        dit: shape of the transformer.
        objective: "flow" matching, or "diffusion" as in DiT.
        global_token: generate the global TinTok too; where not, the mean of all images' stands for it.
        label_dropout: share of the labels left out; with 0 there is no guidance, and no picture without a class.
        optimizer: "adamw", or "muon", see ``huvr.optim.make_optimizer``.
        lr: learning rate.
        warmup: share of the steps in which it rises from 0.
        decay: share of the steps, the last ones, in which it falls on a straight line to ``min_lr``.
        min_lr: learning rate at the end of the decay.
        betas: of AdamW.
        weight_decay: on every parameter.
        compile: have torch compile the network.
        seed: of the first weights, and of times, noise and left-out labels; with the number of the batch it fixes these, so
            that a resumed run draws the same.
        pictures_every: steps between two grids of samples in TensorBoard, from always the same noise; 0 for none.
        guidance: scale of classifier-free guidance in these grids, where there are classes.

    Raises:
        HuvrError: for numbers that make no sense; and on setup, for data other than :class:`Latents`.
    """

    def __init__(
        self,
        encoder: str,
        dit: DiTConfig = DiTConfig(),  # noqa: B008 (frozen)
        objective: ObjectiveName = "flow",
        global_token: bool = True,
        label_dropout: float = 0.1,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-4,
        warmup: float = 0.0,
        decay: float = 0.0,
        min_lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        compile: bool = False,
        seed: int = 0,
        pictures_every: int = 5000,
        guidance: float = 2.0,
    ) -> None:
        super().__init__()
        require({
            f"label_dropout {label_dropout}: expected a share from 0 to below 1": 0 <= label_dropout < 1,
            f"lr {lr}: expected a positive number": lr > 0,
            f"warmup {warmup}, decay {decay}: expected shares of the steps, at most 1 together": (
                min(warmup, decay) >= 0 and warmup + decay <= 1
            ),
            f"betas {tuple(betas)}: expected two numbers from 0 to below 1": all(0 <= beta < 1 for beta in betas),
            f"min_lr {min_lr}, weight_decay {weight_decay}: expected 0 or more": min(min_lr, weight_decay) >= 0,
            f"seed {seed}, pictures_every {pictures_every}: expected 0 or more": min(seed, pictures_every) >= 0,
        })  # fmt: skip
        self.encoder, self.config, self.objective_name = encoder, dit, objective
        self.objective = make_objective(objective)
        self.global_token, self.label_dropout = global_token, label_dropout
        self.optimizer: OptimizerName = optimizer
        self.lr, self.warmup, self.decay, self.min_lr = lr, warmup, decay, min_lr
        self.betas, self.weight_decay, self.compiled = betas, weight_decay, compile
        self.seed, self.pictures_every, self.sampling = seed, pictures_every, Sampling(guidance=guidance)

    def configure_model(self) -> None:
        if hasattr(self, "net"):  # the callback that averages weights has asked before
            return
        with torch.random.fork_rng(devices=[]):  # whether latents were cached must not change the first weights
            torch.default_generator.manual_seed(seed_of("weights", self.seed))
            self.net = make_network(self.config, self.objective, self.space)

    @property
    def data(self) -> Latents:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, Latents):
            raise HuvrError("a generator learns from latents: data needs class_path huvr.tasks.generation.latents.Latents")
        return data

    @property
    def space(self) -> LatentSpace:
        """The latents' space, known from the setup of the data on."""
        space = self.data.space
        assert space is not None
        return space

    def on_fit_start(self) -> None:
        if self.compiled:
            self.net.compile()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        latents = batch["latents"]
        generator = torch.Generator(self.device).manual_seed(self._seed_of_batch())
        predict = partial(self.net, labels=self._some(batch["label"], generator))
        losses = self.objective.losses(predict, latents, generator)
        total = torch.stack([*losses.values()]).sum()
        if len(losses) > 1:
            self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def _seed_of_batch(self) -> int:
        """Not by the step alone, which several accumulated batches share."""
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        return seed_of("noise", self.seed, number, self.global_rank)

    def _some(self, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """Labels, some of them left out; None where there are no classes."""
        if self.net.classes == 0:
            return None
        dropped = torch.rand(len(labels), generator=generator, device=labels.device) < self.label_dropout
        return labels.masked_fill(dropped, self.net.classes)

    def configure_optimizers(self) -> torch.optim.Optimizer | OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.optimizer, self.net.parameters(), self.lr, self.weight_decay, self.betas)
        if self.warmup == self.decay == 0:
            return optimizer
        steps = training_steps(self.trainer)
        share = partial(trapezoid, steps=steps, warmup=self.warmup, decay=self.decay, floor=self.min_lr / self.lr)
        return scheduled(optimizer, share)

    def on_train_start(self) -> None:
        go_on_with(self, self.lr, weight_decay=self.weight_decay, betas=self.betas)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.log("lr", optimizer.param_groups[0]["lr"])
        # Not before the first step: sampling takes long, and there is nothing to see yet.
        due = self.pictures_every and self.global_step and self.global_step % self.pictures_every == 0
        if due and isinstance(self.logger, TensorBoardLogger):
            self.log_pictures(self.logger)

    @torch.no_grad()
    def log_pictures(self, logger: TensorBoardLogger) -> None:
        """A grid of samples from always the same noise; where there are classes, one after the other."""
        if not self.trainer.is_global_zero:
            return
        classes = len(self.space.classes)
        labels = [number % classes for number in range(PICTURED)] if classes else None
        generator = Generator(self.averaged(), self.objective, self.space, self.data.encoder).to(self.device)
        sampling = self.sampling if classes and self.label_dropout else Sampling()
        latents = generator.sample(range(PICTURED), labels, sampling)
        logger.experiment.add_image("samples", make_grid(to_uint8(generator.draw(latents)), nrow=4), self.global_step)

    def averaged(self) -> DiT:
        """The network with averaged weights, where a callback keeps an average."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                return cast(Generation, callback._average_model.module).net
        return self.net

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= describe(self.space, self.config, self.objective_name, self.label_dropout > 0)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Training does not go on with the latents of another encoder, or otherwise normalised ones."""
        told, now = checkpoint.get(KEY), self.space
        if not isinstance(told, dict):
            raise HuvrError("ckpt_path: not the checkpoint of a generator")
        space = LatentSpace.from_plain(told["space"])
        space.check(now.fingerprint, now.encoder)
        fits = (told["net"], told["objective"]) == (asdict(self.config), self.objective_name)
        alike = all(getattr(space, name) == getattr(now, name) for name in ("grid", "classes", "global_token"))
        if not (fits and alike and space.statistics.near(now.statistics)):
            raise HuvrError("ckpt_path: this generator has another shape or objective, or learned other latents")
        self.data.space = replace(now, statistics=space.statistics)  # those it began with, to the last bit


def trapezoid(step: int, steps: int, warmup: float, decay: float, floor: float) -> float:
    """Share of the peak learning rate at an optimiser step: up for ``warmup``, flat, and down to ``floor`` for ``decay``."""
    done = min(1.0, step / steps)
    if done < warmup:
        return done / warmup
    left = 1 - done
    return floor + (1 - floor) * left / decay if left < decay else 1.0
