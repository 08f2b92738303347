"""Decoding that forgives noise: token decoder and INR learn to draw noisy TinToks (RAE, arXiv 2510.11690)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from huvr.data import Images
from huvr.data.loader import Batch, images_of
from huvr.data.samples import Rows, seed_of
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError
from huvr.losses import LossWeights, LPIPSNet, PaintingWeights
from huvr.model.tokens import Tokens
from huvr.optim import OptimizerName
from huvr.pretrain import Pretraining
from huvr.weights import load

from ..looks import looks_at
from .space import Statistics

MEASURED = 2048  # images that the deviation of TinToks is taken of


class DecoderFinetuning(Pretraining):
    """Trains what follows the TinToks of a trained network; encoder, ``bottleneck.down`` and distillation heads stay as they are.

    To each image's TinToks is added noise of deviation ``tau * u`` with u uniform in [0, 1], in units of the deviation of each
    channel, global and patch tokens apart: the space in which a generator works (RAE's stage1/rae.py). Losses are those of
    pretraining between picture and drawing. ``huvr.load`` opens the checkpoint, and generators that learned the TinToks of
    the original go with it.

    Args:
        encoder: whatever ``huvr.load`` opens.
        tau: greatest deviation of the noise.
        weights: of the losses.
        seed: of noise and phases.
        optimizer, lr, min_lr, warmup, weight_decay, betas, phase_jitter, lpips_net, lpips_trunk, pictures_every: as of
            ``huvr.pretrain.Pretraining``.

    Raises:
        HuvrError: for an encoder that cannot be loaded, and numbers that make no sense; when training begins, for data other
            than ``huvr.data.Images``, or streamed.
    """

    def __init__(
        self,
        encoder: str,
        tau: float = 0.8,
        weights: PaintingWeights = PaintingWeights(),  # noqa: B008 (frozen)
        optimizer: OptimizerName = "adamw",
        lr: float = 2e-4,
        min_lr: float = 1e-7,
        warmup: float = 0.1,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        phase_jitter: float = 0.0,
        seed: int = 0,
        lpips_net: LPIPSNet = "vgg",
        lpips_trunk: str | None = None,
        pictures_every: int = 1000,
    ) -> None:
        if tau < 0:
            raise HuvrError(f"tau {tau}: expected 0 or more")
        net = load(encoder)
        none = dict.fromkeys(("encoder_cls", "encoder_patches", "decoder_cls", "decoder_patches", "koleo"), 0.0)
        super().__init__(
            net.config, weights=LossWeights(**vars(weights), **none), optimizer=optimizer, lr=lr, min_lr=min_lr, warmup=warmup,
            weight_decay=weight_decay, betas=betas, phase_jitter=phase_jitter, seed=seed, lpips_net=lpips_net,
            lpips_trunk=lpips_trunk, pictures_every=pictures_every,
        )  # fmt: skip
        self.net, self.tau = net.train(), tau
        for frozen in (net.encoder, net.bottleneck.down, net.distill):
            frozen.requires_grad_(False)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.deviations = self._deviations()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """An average of weights that never change differs from them by rounding: TinToks of another network, to a generator."""
        super().on_save_checkpoint(checkpoint)
        if "current_model_state" in checkpoint:  # of a callback that averages
            for name in (name for name, parameter in self.named_parameters() if not parameter.requires_grad):
                checkpoint["state_dict"][name] = checkpoint["current_model_state"][name]

    @torch.no_grad()
    def _deviations(self) -> tuple[Tensor, Tensor]:
        """Of the channels of global and of patch TinToks, ``(d,)`` each: the same whenever training goes on."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, Images) or not isinstance(data.train_rows, Rows):
            raise HuvrError("a decoder is finetuned on images: data needs class_path huvr.data.Images, not streamed")
        batches = looks_at(data.train_rows.thinned(MEASURED), centre_crop(data.size), data.batch_size, data.workers)
        tintoks = (self._tintoks(images_of(batch).to(self.device)).sequence for batch in batches if batch)
        found = Statistics.of(tintoks)
        return found.cls_std.to(self.device), found.patch_std.to(self.device)

    @torch.no_grad()
    def _tintoks(self, images: Tensor) -> Tokens:
        return self.net.compress(self.net.encode(images))

    def noisy(self, tintoks: Tokens, generator: torch.Generator) -> Tokens:
        """With noise of a strength of its own for each image."""
        cls, patches = tintoks.cls.float(), tintoks.patches.float()
        strength = self.tau * torch.rand(len(cls), 1, 1, generator=generator, device=cls.device)
        noise = torch.randn(tintoks.sequence.shape, generator=generator, device=cls.device)
        of_cls, of_patches = self.deviations
        cls = cls + (strength * of_cls * noise[:, :1])[:, 0]
        return Tokens(cls, patches + strength * of_patches * noise[:, 1:], tintoks.grid)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = self.whole_patches(images_of(batch))
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        generator = torch.Generator(self.device).manual_seed(seed_of("noise", self.seed, number, self.global_rank))
        decoded = self.net.expand(self.noisy(self._tintoks(images), generator))
        return self.weighted(self.painted(decoded, images))
