"""Training of LIFT: the weights learn by Adam so that few steps on the latents paint well (LIFT, arXiv 2503.15420)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchvision.utils import make_grid

from huvr.data.loader import Batch, images_of
from huvr.errors import HuvrError
from huvr.files import read_torch
from huvr.hypernets.lift import LIFT, Latents, LIFTConfig
from huvr.hypernets.lift_meta import descend, encode, find_latents, interpolate, objective, points_of, reconstruct
from huvr.hypernets.masking import MaskedModule, Masking, masked_psnr
from huvr.metrics import psnr, ssim
from huvr.optim import go_on_with
from huvr.released import check_tensors
from huvr.viz import panel, to_uint8
from huvr.weights import LIFT_KEY, refuse_other

SIZE_KEY = "lift_size"  # of a checkpoint: that of the signals it learned
PICTURED = 8  # signals in the pictures
OF_THE_DESCENT = ("inner_steps", "inner_lr", "smoothness")  # fields of a config that may change within a training
STATIONS = 8  # pictures on the way from one signal to another


def iou(painted: Tensor, voxels: Tensor) -> Tensor:
    """Intersection over union of what is at least half full, per volume: ``(B, 1, S, S, S)`` each → ``(B,)``."""
    ours, theirs = (volume.flatten(1) >= 0.5 for volume in (painted, voxels))
    return (ours & theirs).sum(1) / (ours | theirs).sum(1).clamp_min(1)


class MetaLearning(MaskedModule):
    """Trains a LIFT network to paint the signals that it fits, or with ``masking`` those of which it fits only parts.

    Batches are ``{"image": (B, 3, H, W)}``, uint8 or float in [0, 1], or for three dimensions
    ``{"voxels": (B, 1, D, H, W)}`` of 0 and 1. What it predicts are latents, see :class:`huvr.hypernets.lift_store.LatentWriter`.

    Args:
        lift: shape of the network, and its inner loop.
        masking: cells of images that have no say in the latents (MINR), also in validation and prediction; None shows
            everything. The loss that the weights learn from is still that of the whole image.
        lr: of Adam.
        second_order: whether the gradient goes through the inner loop; otherwise the latents it found count as constants,
            which needs less time and memory.
        seed: of the masks.
        pictures_every: steps between two pictures in TensorBoard, 0 for none.

    Raises:
        HuvrError: for numbers that make no sense, and masking of volumes; in training, for signals that the cells do not divide.
    """

    def __init__(
        self,
        lift: LIFTConfig = LIFTConfig(),  # noqa: B008 (frozen)
        masking: Masking | None = None,
        lr: float = 1e-3,
        second_order: bool = True,
        seed: int = 0,
        pictures_every: int = 1000,
    ) -> None:
        super().__init__()
        if lr <= 0 or pictures_every < 0:
            raise HuvrError(f"lr {lr}, pictures_every {pictures_every}: expected a positive lr, and 0 or more steps")
        if masking is not None and lift.dims != 2:
            raise HuvrError(f"dims {lift.dims}: masking hides cells of images, not of volumes: leave it out")
        self.masking, self.seed = masking, seed
        self.lr, self.second_order, self.pictures_every = lr, second_order, pictures_every
        self.net = LIFT(lift)
        # Lightning's own mean over ranks rounds the number of signals per rank, which need not be whole.
        self.means = nn.ModuleDict({name: MeanMetric() for name in ("psnr", "ssim", "mse", "iou")})
        self.means["psnr_hidden"] = MeanMetric(nan_strategy="ignore")  # an image without hidden pixels has none
        self._pictured: Tensor | None = None

    def signals(self, batch: Batch) -> Tensor:
        """The images in [0, 1], or the voxels, of a batch as floats."""
        key = "image" if self.net.config.dims == 2 else "voxels"
        if key not in batch:
            raise HuvrError(f"dims {self.net.config.dims}: batches need {key!r}, these have {', '.join(map(repr, batch))}")
        return images_of(batch) if key == "image" else batch[key].float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        signals = self.signals(batch)
        if self._pictured is None:
            self._pictured = signals[:PICTURED].clone()
        points = points_of(self.net, signals)
        seen, mask = self.seen(signals, "train", batch_idx)
        latents = descend(self.net, seen, points, self.second_order, mask)
        losses, painted = objective(self.net, latents, signals, points)
        self.log("train/loss", losses.detach().mean())
        self.log("train/psnr", psnr(as_pictures(painted.detach()), as_pictures(signals)).mean(), prog_bar=True)
        return losses.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        signals = self.signals(batch)
        if batch_idx == 0:
            self._pictured = signals[:PICTURED].clone()
        self.measure(signals, "val", batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(self.signals(batch), "test", batch_idx)

    def measure(self, signals: Tensor, stage: str, batch_idx: int) -> None:
        """Log the means over all signals of the set: PSNR, and SSIM of images, or mean squared error and IoU of volumes.

        With masking, PSNR of the hidden pixels too.
        """
        seen, mask = self.seen(signals, stage, batch_idx)
        painted = reconstruct(self.net, seen, mask)
        values = {"psnr": psnr(as_pictures(painted), as_pictures(signals))}
        if self.net.config.dims == 2:
            values["ssim"] = ssim(painted, signals)
        else:
            values |= {"mse": (painted - signals).square().flatten(1).mean(1), "iou": iou(painted, signals)}
        if mask is not None:
            values["psnr_hidden"] = masked_psnr(painted, signals, mask)
        for name, each in values.items():
            mean: Any = self.means[name]
            mean.update(each)
            self.log(f"{stage}/{name}", mean, prog_bar=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Latents:
        """The latents of each level, ``(B, cells^D, numbers)``."""
        return find_latents(self.net, *self.seen(self.signals(batch), "predict", batch_idx))

    def configure_optimizers(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.parameters(), self.lr)

    def on_fit_start(self) -> None:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(each, WeightAveraging) and each._use_buffers for each in callbacks):
            raise HuvrError("trainer.callbacks: averages of LIFT's buffers, which are tables of cells: set use_buffers: false")

    def on_train_start(self) -> None:
        go_on_with(self, self.lr)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm before clipping, and now and then pictures."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.log("grad_norm", torch.nn.utils.get_total_norm(gradients))
        if self.pictures_every and self.global_step % self.pictures_every == 0 and isinstance(self.logger, TensorBoardLogger):
            self.log_pictures(self.logger)

    def log_pictures(self, logger: TensorBoardLogger) -> None:
        """Signals beside their reconstructions, and the way from each to the next through their latents."""
        if not self.trainer.is_global_zero or self._pictured is None:
            return
        with torch.no_grad():
            signals, (seen, mask) = self._pictured, self.seen(self._pictured, "pictures", 0)
            tokens = encode(self.net, seen, mask)
            painted = self.net.render(tokens, tuple(signals.shape[2:]))
            way = interpolate(self.net, signals, signals.roll(-1, 0), STATIONS).flatten(0, 1)
        if self.net.config.dims == 2:
            pictures = panel(signals, painted, tokens)
        else:
            pairs = torch.stack([flattened(signals), flattened(painted)], dim=1).flatten(0, 1)
            pictures, way = to_uint8(make_grid(pairs, nrow=2, pad_value=1.0)), flattened(way)
        logger.experiment.add_image("pictures", pictures, self.global_step)
        if mask is not None:
            logger.experiment.add_images("seen", seen, self.global_step)
        logger.experiment.add_image("interpolation", to_uint8(make_grid(way, nrow=STATIONS, pad_value=1.0)), self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[LIFT_KEY] = asdict(self.net.config)
        if self._pictured is not None:
            checkpoint[SIZE_KEY] = list(self._pictured.shape[2:])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other("ckpt_path", checkpoint.get(LIFT_KEY, {}), asdict(self.net.config), OF_THE_DESCENT)


def as_pictures(signals: Tensor) -> Tensor:
    """``(B, C, *sides)`` as ``(B, C, H, W)``; the planes of a volume stand below each other."""
    return signals.flatten(2, -2)


def flattened(volumes: Tensor) -> Tensor:
    """Volumes ``(B, 1, D, H, W)`` seen along their first axis, the mean of all planes: ``(B, 1, H, W)``."""
    return volumes.clamp(0, 1).mean(2)


def load(path: str | Path) -> LIFT:
    """The network of a checkpoint of :class:`MetaLearning`, in evaluation mode on the CPU.

    Raises:
        HuvrError: for another kind of file, or a damaged one.
    """
    return rebuild(read_torch(Path(path)), str(path)).eval()


def rebuild(content: Mapping[str, Any], where: str) -> LIFT:
    """The network of what a checkpoint holds; ``where`` names it in errors."""
    if LIFT_KEY not in content:
        raise HuvrError(f"{where}: not a checkpoint of LIFT; expected one that huvr fit wrote with huvr.hypernets.lift_module")
    settings = dict(content[LIFT_KEY])
    settings["latents"] = tuple(tuple(level) for level in settings["latents"])
    net = LIFT(LIFTConfig(**settings))
    tensors = {name.removeprefix("net."): tensor for name, tensor in content["state_dict"].items()}
    check_tensors(tensors, net.state_dict(), where)
    net.load_state_dict(tensors)
    return net
