"""Pretraining of HUVR: reconstruction, distillation and a spread of the global tokens (HUVR, section on training)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from huvr.data.loader import Batch, images_of
from huvr.errors import HuvrError, require
from huvr.losses import LossWeights, LPIPSLoss, LPIPSNet, distillation_loss, koleo_loss, log_pixel_loss, pixel_loss, ssim_loss
from huvr.metrics import psnr, ssim
from huvr.model import HUVR, HUVRConfig, Tokens
from huvr.optim import OptimizerName, go_on_with, make_optimizer, scheduled, training_steps, warmup_cosine
from huvr.phase import draw_phase, moved
from huvr.safety import total_norm
from huvr.sharding import shard
from huvr.teacher import TeacherConfig, Teachers, pretrained_network
from huvr.weights import load, refuse_other

PLACES = ("encoder_cls", "encoder_patches", "decoder_cls", "decoder_patches")
PICTURED = 8  # images in the grid of pictures
OF_RELEASED = ("patch", "width", "depth", "heads", "registers", "positions")  # fields that say nothing of a timm encoder


def numbered(place: str, teacher: int) -> str:
    """Name of a place of distillation for the teacher of that number."""
    return f"{place}_{teacher}" if teacher else place


class Pretraining(LightningModule):
    """Trains ``net`` to paint its input and to predict the tokens of frozen teachers.

    Batches are ``{"image": (B, 3, H, W)}``, uint8 or float in [0, 1], of as many images as the data module's attribute
    ``batch_size`` says. In training a side that is no multiple of the patch is cropped. The teachers stay outside of the
    module: no checkpoint holds them, and only ``fit`` needs their weights.

    Args:
        net: shape of the network; its ``distill_dims`` follow from ``teachers``.
        teachers: networks to distil, none for pure reconstruction.
        weights: of the losses.
        decoder_tap: layer of the token decoder, from 1, whose output the decoder places distil.
        optimizer: "adamw" as released, or "muon", which needs far fewer steps, see ``make_optimizer``.
        lr: learning rate per 256 images of a step, over all devices and accumulated batches.
        min_lr: learning rate at the end.
        warmup: share of the steps in which the learning rate rises from 0 (released: 5 of 50 epochs).
        weight_decay: on every parameter.
        betas: of AdamW.
        koleo_over: where KoLeo looks for neighbours: among the images of a "device", as released, or of all devices, the
            "step" (without accumulated batches).
        phase_jitter: each step paints at a random sub-pixel offset of at most this many pixels along each axis, at most 0.5.
        seed: of that offset; together with the number of the step it fixes it, so that a resumed run draws the same.
        lpips_net: trunk of LPIPS.
        lpips_trunk: local file with its weights, see ``LPIPSLoss``.
        pictures_every: steps between two grids of pictures in TensorBoard, 0 for none.
        encoder_weights: what a timm network as ``net.encoder`` begins with: "hub", or a local file; None is chance.
        start: a network of the same ``net`` to go on from, whatever ``huvr.load`` opens; heads of distillation that it has not,
            or has of other sizes, begin by chance.
        compile: have torch compile the layers of encoder and decoder, and the INR.
        checkpoint_activations: compute the layers of the encoder once more in the backward pass instead of keeping what lies
            within them: less memory, more time.

    Raises:
        HuvrError: for a tap outside of the decoder, numbers that make no sense, an unknown teacher; and when
            training begins, for weights that cannot be had and for training without an end.
    """

    def __init__(
        self,
        net: HUVRConfig = HUVRConfig(),  # noqa: B008 (frozen)
        teachers: Sequence[TeacherConfig] = (),
        weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
        decoder_tap: int = 1,
        optimizer: OptimizerName = "adamw",
        lr: float = 5e-4,
        min_lr: float = 1e-7,
        warmup: float = 0.1,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        koleo_over: Literal["device", "step"] = "device",
        phase_jitter: float = 0.0,
        seed: int = 0,
        lpips_net: LPIPSNet = "vgg",
        lpips_trunk: str | None = None,
        pictures_every: int = 1000,
        encoder_weights: str | None = None,
        start: str | None = None,
        compile: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        require({
            f"decoder_tap {decoder_tap}: the decoder has layers 1 to {net.decoder_depth}": 1 <= decoder_tap <= net.decoder_depth,
            f"phase_jitter {phase_jitter}: expected 0 to 0.5 pixels": 0 <= phase_jitter <= 0.5,
            f"lr {lr}: expected a positive number": lr > 0,
            f"warmup {warmup}: expected a share of the steps, 0 to 1": 0 <= warmup <= 1,
            f"betas {tuple(betas)}: expected two numbers from 0 to below 1": all(0 <= beta < 1 for beta in betas),
            f"min_lr {min_lr}, weight_decay {weight_decay}: expected 0 or more": min(min_lr, weight_decay) >= 0,
            f"seed {seed}: expected 0 or more": seed >= 0,
        })  # fmt: skip
        if encoder_weights and net.encoder is None:
            raise HuvrError(f"encoder_weights {encoder_weights}: they need net.encoder, the name of a timm ViT")
        if encoder_weights and start:
            raise HuvrError(f"encoder_weights {encoder_weights} and start {start}: training begins with one of them")
        self.encoder_weights, self.start, self.begun, self.compiled = encoder_weights, start, False, compile
        self.teachers, self.decoder_tap = tuple(teachers), decoder_tap
        self.optimizer: OptimizerName = optimizer
        self.lr, self.min_lr, self.warmup, self.weight_decay, self.betas = lr, min_lr, warmup, weight_decay, betas
        self.phase_jitter, self.seed, self.pictures_every = phase_jitter, seed, pictures_every
        self.koleo_over = koleo_over
        self.lpips_net, self.lpips_trunk = lpips_net, lpips_trunk
        self.places = [place for place in PLACES if getattr(weights, place)]
        self.weights: dict[str, float] = asdict(weights)
        dims: dict[str, int] = {}
        for number, teacher in enumerate(self.teachers):
            dims |= {numbered(place, number): teacher.dim for place in self.places}
            self.weights |= {numbered(place, number): self.weights[place] for place in self.places}
        self.net = HUVR(replace(net, distill_dims=dims))
        self.net.encoder.vit.set_grad_checkpointing(checkpoint_activations)
        # Lightning's own mean over ranks rounds the number of images per rank, which need not be whole.
        self.means = nn.ModuleDict({"psnr": MeanMetric(), "ssim": MeanMetric()})
        self._pictured: Tensor | None = None
        # Constants: DDP need not send them round before each pass, and no rank waits for one with more images to validate.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def configure_model(self) -> None:
        """Compiled where asked for, and in shards where the trainer's strategy says so."""
        if self.trainer.state.fn == TrainerFn.FITTING:  # not left to setup: callbacks that average copy the network before
            self.begin()
        layers = [*self.net.encoder.vit.blocks, *self.net.decoder.layers]
        if self.compiled:  # one by one: they share their code, and gradients are sent while others are computed
            for part in (*layers, self.net.inr):
                part.compile()
        if self.device_mesh is not None:
            shard(self, layers, self.device_mesh["data_parallel"])

    def setup(self, stage: str) -> None:
        if stage == "fit":  # here the weights still have their own precision, and are whole
            self.begin()

    def on_validation_start(self) -> None:
        """Where no checkpoint has brought weights, those to begin with are what is measured."""
        if self.device_mesh is not None and not self.begun and (source := self.start or self.encoder_weights):
            raise HuvrError(f"start {source}: measured in one piece only, not in shards: leave trainer.strategy out")
        self.begin()

    on_test_start = on_predict_start = on_validation_start

    def begin(self) -> None:
        """Take over the weights to begin with, once; a checkpoint that training goes on from is read later: the last word."""
        if self.begun:
            return
        if self.encoder_weights:
            config, vit = self.net.config, self.net.encoder.vit
            shape = {"img_size": config.image_size, "global_pool": ""}  # as the encoder is made
            tensors = pretrained_network(TeacherConfig(config.encoder or "", self.encoder_weights, arguments=shape)).state_dict()
            vit.load_state_dict({name: tensors[name] for name in vit.state_dict()})
        if self.start:
            self.begin_with(load(self.start), self.start)
        self.begun = True

    def begin_with(self, other: HUVR, source: str) -> None:
        """Take over the weights of ``other``; raise a HuvrError where its config differs beyond the heads of distillation."""
        self.refuse_other(f"start {source}", vars(other.config))
        own, given = self.net.state_dict(), other.state_dict()
        fits = {name for name, tensor in own.items() if name in given and given[name].shape == tensor.shape}
        self.net.load_state_dict({name: given[name] if name in fits else tensor for name, tensor in own.items()})

    def refuse_other(self, given: str, config: dict[str, Any]) -> None:
        """Raises HuvrError where ``given`` holds another network than ours."""
        free = ("distill_dims", *(OF_RELEASED if self.net.config.encoder else ()))
        refuse_other(given, config, vars(self.net.config), free)

    def on_fit_start(self) -> None:
        # Not earlier: the EMA callback copies the module before, and validate and predict go without teachers.
        self._teachers = Teachers(self.teachers, self.device, bf16=str(self.trainer.precision).startswith("bf16"))
        if self.compiled:
            self._teachers.compile()
        self._lpips = LPIPSLoss(self.lpips_net, self.lpips_trunk, self.device) if self.weights["lpips"] else None

    def on_train_epoch_start(self) -> None:
        self._teachers.forget()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = self.whole_patches(images_of(batch))
        if self._pictured is None:
            self._pictured = images[:PICTURED].clone()  # a view would keep the whole batch

        encoded = self.net.encode(images)
        decoded, tapped = self.net.decoder(self.net.bottleneck.expand(self.net.compress(encoded)), taps=(self.decoder_tap,))
        losses = self.painted(decoded, images)
        targets = self._teachers(images, encoded.grid, batch.get("echo"))
        losses |= self.distillation_losses(targets, encoded, tapped[self.decoder_tap])
        if self.weights["koleo"]:
            losses["koleo"] = self.koleo(encoded.cls)
        return self.weighted(losses)

    def painted(self, decoded: Tokens, images: Tensor) -> dict[str, Tensor]:
        """The losses of painting these images from decoded tokens, by name."""
        phase = draw_phase(self.phase_jitter, self.seed, self.global_step)
        painted, target = self.net.paint(decoded, phase), moved(images, phase)
        if self.noted:  # from the host: the bar reads it again after each step, and would wait for the device
            self.log("train/psnr", psnr(painted.detach(), target).mean().cpu(), prog_bar=True)
        return self.painting_losses(painted, target)

    @property
    def noted(self) -> bool:
        """Whether the logger takes what this step logs, or the bar is empty yet: each number takes half a millisecond."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.global_step == 0 or (every > 0 and (self.global_step + 1) % every == 0)

    def whole_patches(self, images: Tensor) -> Tensor:
        """Images cropped to whole patches; raise a HuvrError where they are smaller than one."""
        (height, width), patch = images.shape[-2:], self.net.patch
        if min(height, width) < patch:
            raise HuvrError(f"images of {height}x{width} pixels are smaller than a patch of {patch}")
        return images[..., : height // patch * patch, : width // patch * patch]

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses, each by its weight; logs them all."""
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        self.log("train/loss", total.detach())  # at every step: callbacks may monitor it
        if self.noted:
            self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
        return total

    def koleo(self, features: Tensor) -> Tensor:
        """KoLeo of the global tokens ``(B, D)`` of this device, among those of all devices where asked for."""
        if self.koleo_over == "device" or self.trainer.world_size == 1:
            return koleo_loss(features)
        return koleo_loss(features, self.all_gather(features, sync_grads=True), self.global_rank)  # type: ignore[arg-type]

    def painting_losses(self, painted: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The losses between two batches of pictures, by name."""
        losses = {"pixel": pixel_loss(painted, target)}
        if self.weights["log_pixel"]:
            losses["log_pixel"] = log_pixel_loss(painted, target)
        if self.weights["ssim"]:
            losses["ssim"] = ssim_loss(painted, target)
        if self._lpips:
            losses["lpips"] = self._lpips(painted, target)
        return losses

    def distillation_losses(self, targets: list[Tokens], encoded: Tokens, decoded: Tokens) -> dict[str, Tensor]:
        """The losses against what every teacher says, at every place, by name."""
        losses = {}
        for number, target in enumerate(targets):
            for place in self.places:
                side, kind = place.split("_")
                name, student = numbered(place, number), encoded if side == "encoder" else decoded
                losses[name] = distillation_loss(self.net.distill[name](getattr(student, kind)), getattr(target, kind))
        return losses

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = images_of(batch)
        if batch_idx == 0:
            self._pictured = images[:PICTURED].clone()
        self.measure(images, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(images_of(batch), "test")

    def measure(self, images: Tensor, stage: str) -> None:
        """Log the means of PSNR and SSIM over all images of the set."""
        painted = self.net.reconstruct(images)
        for name, values in (("psnr", psnr(painted, images)), ("ssim", ssim(painted, images))):
            mean: Any = self.means[name]
            mean.update(values)
            self.log(f"{stage}/{name}", mean, prog_bar=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Reconstructions, unclamped."""
        return self.net.reconstruct(images_of(batch))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        steps, peak = training_steps(self.trainer), self.peak_lr()
        optimizer = make_optimizer(self.optimizer, self.parameters(), peak, self.weight_decay, self.betas)
        return scheduled(optimizer, lambda step: warmup_cosine(step, steps, self.warmup * steps, self.min_lr / peak))

    def on_train_start(self) -> None:
        go_on_with(self, self.peak_lr(), weight_decay=self.weight_decay, betas=self.betas)

    def peak_lr(self) -> float:
        """The learning rate after warmup, for all images of a step."""
        return self.lr * self.effective_batch() / 256

    def effective_batch(self) -> int:
        """Images per optimiser step, over all devices and accumulated batches."""
        self.trainer.fit_loop.setup_data()  # Lightning has not always done so by now
        source: Any = self.trainer.datamodule or self.trainer.train_dataloader  # type: ignore[attr-defined]
        if not isinstance(batch := getattr(source, "batch_size", None), int):
            raise HuvrError(f"data: {type(source).__name__} has no attribute batch_size, by which the learning rate goes")
        return batch * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the learning rate and, before clipping, the gradient norms of the two branches that modulate the INR."""
        if self.noted:
            branches = {"patch": self.net.inr.to_patch, "global": self.net.inr.to_global}
            for name, branch in branches.items():
                gradients = [p.grad for p in branch.parameters() if p.grad is not None]
                self.log(f"grad_norm/{name}", total_norm(gradients))
            self.log("lr", torch.tensor(optimizer.param_groups[0]["lr"]))  # a bare number would go through the device
        if self.pictures_every and self.global_step % self.pictures_every == 0 and isinstance(self.logger, TensorBoardLogger):
            self.log_pictures(self.logger)

    @torch.no_grad()
    def log_pictures(self, logger: TensorBoardLogger) -> None:
        """A grid of pictures of the first validation images, or of the first training images where there is no validation."""
        from huvr.viz import panel

        if self._pictured is None or not (self.trainer.is_global_zero or self.device_mesh):
            return
        painted, tokens = self.look(self._pictured)  # weights in shards need all processes for that
        if self.trainer.is_global_zero:
            logger.experiment.add_image("pictures", panel(self._pictured, painted, tokens), self.global_step)

    def look(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """Reconstructions and standard tokens."""
        return self.net.reconstruct(images), self.net.encode(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["huvr_config"] = asdict(self.net.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.refuse_other("ckpt_path", checkpoint.get("huvr_config", {}))
        self.begun = True
