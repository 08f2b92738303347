"""Training of hyper-networks: the same data, trainer, measure and masks for all of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from huvr.data.loader import Batch, images_of
from huvr.data.samples import seed_of
from huvr.errors import require
from huvr.hypernets.coordinates import Jitter, jittered, pixel_centres
from huvr.hypernets.interface import HyperINR
from huvr.hypernets.masking import MaskedModule, Masking, masked_psnr
from huvr.hypernets.weights import described
from huvr.metrics import PSNR_MOST, psnr
from huvr.optim import OptimizerName, go_on_with, make_optimizer, scheduled, training_steps, warmup_cosine
from huvr.pretrain import PICTURED
from huvr.weights import HYPERNET_KEY, refuse_other

Schedule = Literal["constant", "step", "cosine"]


def learning_rate(schedule: Schedule, step: int, steps: int, warmup: float) -> float:
    """Share of the peak at an optimiser step, counted from 0.

    "step" falls to a tenth for the last fifth (trans-inr, imgrec_trainer.py); "cosine" rises over ``warmup`` of all steps
    first; "constant" is constant.
    """
    if schedule == "cosine":
        return warmup_cosine(step, steps, warmup * steps)
    return 0.1 if schedule == "step" and step >= 0.8 * steps else 1.0


class HyperNetwork(MaskedModule):
    """Trains ``net`` to paint the images it sees, or with ``masking`` those it sees only parts of.

    Batches are ``{"image": (B, 3, H, W)}``, uint8 or float in [0, 1]. Masks are drawn anew at each access, in training and in
    validation; ``seed`` and the place in the training fix them, and the jitter.

    Args:
        net: the hyper-network.
        masking: cells that it does not see (MINR); None shows everything. The loss is still that of the whole image.
        jitter: moves the points painted in training inside their pixels, see :func:`~huvr.hypernets.coordinates.jittered`.
        optimizer: "adamw", which without weight decay is Adam, or "muon".
        lr: learning rate.
        schedule: of the learning rate, see :func:`learning_rate`.
        warmup: share of the steps in which the learning rate of "cosine" rises.
        weight_decay: on every parameter.
        betas: of the optimiser.
        seed: of masks, jitter and dropout.
        pictures_every: steps between two grids of pictures in TensorBoard, 0 for none.

    Raises:
        HuvrError: for numbers that make no sense, and when training begins, for training without an end.
    """

    def __init__(
        self,
        net: HyperINR,
        masking: Masking | None = None,
        jitter: Jitter = "none",
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-4,
        schedule: Schedule = "constant",
        warmup: float = 0.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        seed: int = 0,
        pictures_every: int = 1000,
    ) -> None:
        super().__init__()
        require({
            f"lr {lr}: expected a positive number": lr > 0,
            f"warmup {warmup}: expected a share of the steps, 0 to 1": 0 <= warmup <= 1,
            f"betas {tuple(betas)}: expected two numbers from 0 to below 1": all(0 <= beta < 1 for beta in betas),
            f"weight_decay {weight_decay}: expected 0 or more": weight_decay >= 0,
        })  # fmt: skip
        self.net, self.masking, self.jitter = net, masking, jitter
        # Lightning's own mean over ranks rounds the number of images per rank, which need not be whole.
        self.means = nn.ModuleDict({"psnr": MeanMetric(), "psnr_hidden": MeanMetric()})
        self.optimizer: OptimizerName = optimizer
        self.schedule: Schedule = schedule
        self.lr, self.warmup, self.weight_decay, self.betas = lr, warmup, weight_decay, betas
        self.seed, self.pictures_every = seed, pictures_every
        self._pictured: Tensor | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # For dropout: a resumed run drops what it would have, and each process its own.
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(seed_of("dropout", self.seed, number, self.global_rank))
        images = images_of(batch)
        if self._pictured is None:
            self._pictured = images[:PICTURED].clone()  # a view would keep the whole batch
        seen, mask = self.seen(images, "train", batch_idx)
        parameters = self.net.encode(seen, mask)
        painted = self.net.render(parameters) if self.jitter == "none" else self.painted(parameters, batch_idx)
        loss = self.net.loss(painted, images, mask)
        self.log("train/loss", loss.detach())
        self.log("train/psnr", psnr(painted.detach(), images).mean(), prog_bar=True)
        return loss

    def painted(self, parameters: Any, batch_idx: int) -> Tensor:
        """The picture ``(B, 3, H, W)`` at jittered points."""
        size, device = parameters.size, parameters.tensors[0].device
        generator = torch.Generator(device)
        generator.manual_seed(seed_of("jitter", self.seed, self.global_step, batch_idx, self.global_rank))
        centres = pixel_centres(size, device).expand(len(parameters.tensors[0]), -1, -1)
        points = jittered(centres, size, self.jitter, generator)
        return self.net.paint(parameters, points).transpose(1, 2).unflatten(2, size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = images_of(batch)
        if batch_idx == 0:
            self._pictured = images[:PICTURED].clone()
        self.measure(images, "val", batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(images_of(batch), "test", batch_idx)

    def measure(self, images: Tensor, stage: str, batch_idx: int) -> None:
        """Log the mean PSNR over all images of the set; with masking that of hidden pixels too."""
        seen, mask = self.seen(images, stage, batch_idx)
        painted = self.net.reconstruct(seen, mask=mask)
        # what is not hidden may be given back unchanged
        values = {"psnr": psnr(painted, images).clamp_max(PSNR_MOST)}
        if mask is not None:
            hidden = masked_psnr(painted, images, mask)
            values["psnr_hidden"] = hidden[~hidden.isnan()]  # an image without hidden pixels has none
        for name, each in values.items():
            mean: Any = self.means[name]
            if len(each):
                mean.update(each)
            self.log(f"{stage}/{name}", mean, prog_bar=name == "psnr")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Reconstructions, unclamped."""
        seen, mask = self.seen(images_of(batch), "predict", batch_idx)
        return self.net.reconstruct(seen, mask=mask)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        steps = training_steps(self.trainer)
        optimizer = make_optimizer(self.optimizer, self.parameters(), self.lr, self.weight_decay, self.betas)
        return scheduled(optimizer, lambda step: learning_rate(self.schedule, step, steps, self.warmup))

    def on_train_start(self) -> None:
        go_on_with(self, self.lr, weight_decay=self.weight_decay, betas=self.betas)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.log("lr", optimizer.param_groups[0]["lr"])
        if self.pictures_every and self.global_step % self.pictures_every == 0 and isinstance(self.logger, TensorBoardLogger):
            self.log_pictures(self.logger)

    @torch.no_grad()
    def log_pictures(self, logger: TensorBoardLogger) -> None:
        """A grid of pictures of the first validation images, or of the first training images where there is no validation."""
        from huvr.viz import panel

        if self.trainer.is_global_zero and self._pictured is not None:
            self.net.eval()  # no dropout, which would also change the course of the training
            seen, mask = self.seen(self._pictured, "pictures", 0)
            painted = self.net.reconstruct(seen, mask=mask)
            logger.experiment.add_image("pictures", panel(self._pictured, painted, self.net.tokens(seen)), self.global_step)
            if mask is not None:
                logger.experiment.add_images("seen", seen, self.global_step)
            self.net.train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[HYPERNET_KEY] = described(self.net)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        told, ours = checkpoint.get(HYPERNET_KEY, {}), described(self.net)
        refuse_other("ckpt_path", told, ours, free=["config"])
        refuse_other("ckpt_path", told.get("config", {}), ours["config"])
