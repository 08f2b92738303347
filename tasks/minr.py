"""Painting what is hidden: PSNR of masked images at many masking ratios, also of kinds and data never trained on (MINR)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from huvr.data import Images
from huvr.data.loader import Batch, images_of
from huvr.data.samples import seed_of
from huvr.errors import HuvrError
from huvr.hypernets.masking import Masking, MaskKind, hide, masked_psnr
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.weights import load
from huvr.metrics import PSNR_MOST, psnr

from .base import EncoderConfig
from .storage import size_stored


class MINR(LightningModule):
    """PSNR in dB of whole images (``psnr_KIND_RATIO``) and of hidden pixels alone (``hidden_KIND_RATIO``), ratios in per cent.

    Each image has one mask of each kind and ratio, fixed by ``seed`` and its number, so that all networks see the same.
    What of other data is measured begins with ``other/``.

    Args:
        encoder: the network, from ``huvr fit`` of a hyper-network or whatever ``huvr.load`` opens; only its source counts.
        ratios: shares of hidden cells.
        kinds: see :class:`~huvr.hypernets.masking.Masking`.
        cell: side of a cell in pixels.
        seed: of the masks.

    Raises:
        HuvrError: for tokens, a layer or a network that paints nothing, and for masks that cannot be.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        ratios: tuple[float, ...] = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9),
        kinds: tuple[MaskKind, ...] = ("random", "block", "grid"),
        cell: int = 13,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if encoder.tokens != "standard" or encoder.layer is not None:
            raise HuvrError("the task minr measures pictures, not tokens: leave tokens and layer out")
        if encoder.timm_name:
            raise HuvrError(f"encoder {encoder.source}: a network of timm paints nothing")
        if not ratios or not kinds:
            raise HuvrError("ratios, kinds: expected one or more of each")
        self.maskings = [Masking(ratio, cell, kind) for kind in dict.fromkeys(kinds) for ratio in dict.fromkeys(ratios)]
        self.seed = seed
        self.net = load(encoder.source).requires_grad_(False)
        self.means: Any = nn.ModuleDict()
        self.details: dict[str, object] = {}

    def on_test_start(self) -> None:
        self.details["tokens"] = "tintok" if isinstance(self.net, PatchwiseHUVR) else f"parameters of {type(self.net).__name__}"
        self.details["data"] = self.trainer.datamodule.described()  # type: ignore[attr-defined]
        self.seen_images = [0, 0]

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        images = images_of(batch)
        first = self.seen_images[dataloader_idx]
        self.seen_images[dataloader_idx] += len(images)
        for masking in self.maskings:
            numbers = range(first, first + len(images))
            mask = masking.masks(images, [seed_of("minr", self.seed, masking.kind, str(masking.ratio), n) for n in numbers])
            seen = hide(images, mask)
            painted = self.net.reconstruct(seen, mask=mask)
            name = f"{masking.kind}_{100 * masking.ratio:g}".replace(".", "p")  # a dot is not allowed in a module's name
            # Where all is visible, a network may give it back unchanged.
            self._add(f"psnr_{name}", dataloader_idx, psnr(painted, images).clamp_max(PSNR_MOST))
            self._add(f"hidden_{name}", dataloader_idx, masked_psnr(painted, images, mask).clamp_max(PSNR_MOST))
        if "bytes_per_image" not in self.details:
            self.details["bytes_per_image"] = size_stored(self.net.encode(seen, mask).numbers, "fp16")

    def _add(self, name: str, domain: int, values: Tensor) -> None:
        """To the mean of that name; nan, of an image without hidden pixels, does not count."""
        name = f"other/{name}" if domain else name
        if name not in self.means:
            self.means[name] = MeanMetric(nan_strategy="ignore").to(values.device)
        self.means[name].update(values)

    def on_test_epoch_end(self) -> None:
        found = {name: float(mean.compute()) for name, mean in self.means.items() if mean.update_called}
        self.log_dict({name: value for name, value in found.items() if not math.isnan(value)})


class Domains(LightningDataModule):
    """The held-out images of one data set, and of a second one that the network was not trained on.

    Args:
        root, other: data sets, each whatever ``huvr.data.Images`` opens; None measures the first alone.
        split, other_split: the held-out splits; None finds them.
        held_out: share of a set without such a split to measure on: that of the training, or less.
        size: side of the square images in pixels.
        batch_size: images per batch.
        workers: processes that load, for each; None suits the machine.
    """

    def __init__(
        self,
        root: str = "",
        other: str | None = None,
        split: str | None = None,
        other_split: str | None = None,
        held_out: float = 0.05,
        size: int = 182,
        batch_size: int = 16,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if not root:
            raise HuvrError("which data? --data.root with a folder, a file or a Hugging Face data set of images")
        pairs = [(root, split)] if other is None else [(root, split), (other, other_split)]
        images = partial(Images, held_out=held_out, size=size, batch_size=batch_size, workers=workers)
        self.sets = [images(where, val_split=name) for where, name in pairs]

    def setup(self, stage: str | None = None) -> None:
        for images in self.sets:
            images.setup(stage)

    def test_dataloader(self) -> list[Any]:
        return [images.val_dataloader() for images in self.sets]

    def described(self) -> dict[str, str]:
        names = ("test", "other")
        return {name: f"{images.root}, middle {images.size}" for name, images in zip(names, self.sets, strict=False)}
