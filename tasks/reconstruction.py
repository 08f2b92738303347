"""Drawing images from their stored TinToks: how much of them is left, and how much other formats keep in the same bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchvision.utils import make_grid

from huvr.data.loader import Batch, images_of
from huvr.errors import HuvrError
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.weights import load
from huvr.losses import LPIPSLoss, LPIPSNet
from huvr.metrics import PSNR_MOST, psnr, ssim, ssim_nhwc
from huvr.viz import GAP, save_png, to_uint8

from .base import EncoderConfig
from .frechet import FrechetConfig, FrechetNetwork
from .pictures import Pictures
from .rivals import SDVAE, PatchPCA, jpeg
from .storage import parameters_stored

Rival = Literal["pca", "jpeg", "sdvae"]
# Images (B, 3, H, W) in [0, 1], and the bytes that the network takes for each, to what is left of them, and the bytes it took.
Format = Callable[[Tensor, int], tuple[Tensor, list[int]]]

PCA_PATCH = 16  # pixels, beside a network without patches of its own
SHOWN = 4  # images in the picture of the run folder


class Reconstruction(LightningModule):
    """Drawing images from their stored TinToks, beside other formats of the same size; any hyper-network's parameters alike.

    Measured per image and averaged, as the released validate.py does: PSNR, SSIM and LPIPS of the unclamped drawing; beside
    them the PSNR of its 8-bit picture, and ``ssim_nhwc``, the form in which HUVR's SSIM was computed. Fréchet distances
    are of 8-bit pictures. ``details["rivals"]`` has the same of each rival, with its bytes and the number of images that took
    more of them than TinToks; ``drawings.png`` in the run folder shows a few images: original | network | rivals.

    Args:
        encoder: a HUVR network, with ``tokens`` "tintok", or another hyper-network, whose INR parameters of an image stand for
            TinToks then; ``stored`` decides what these cost, and PCA's components alike.
        lpips: trunks to measure LPIPS with: vgg (the paper's), alex, squeeze.
        lpips_trunks: local files with torchvision's weights of these trunks, by name; the others are downloaded.
        frechet: a network to measure the Fréchet distance with.
        rivals: "pca", per-patch PCA fitted to training images, with as many components of HUVR's own patches, or of 16-pixel
            patches beside other networks, as the bytes of all TinToks of the image hold; "jpeg", at the greatest quality
            within these bytes; "sdvae", the VAE of Stable Diffusion at the bytes it needs.
        sdvae: the diffusers repository or folder of that VAE.
        refine: steps of descent on each image that look for better TinToks, or parameters, before they are stored, see
            :func:`huvr.refine.refined`.
    """

    headline, lower_is_better = "psnr", False

    def __init__(
        self,
        encoder: EncoderConfig,
        lpips: tuple[LPIPSNet, ...] = (),
        lpips_trunks: dict[str, str] | None = None,
        frechet: FrechetConfig | None = None,
        rivals: tuple[Rival, ...] = ("pca", "jpeg"),
        sdvae: str = "stabilityai/sd-vae-ft-mse",
        refine: int = 0,
    ) -> None:
        super().__init__()
        if encoder.timm_name:
            raise HuvrError(f"encoder {encoder.source}: only a HUVR network or another hyper-network can draw")
        if encoder.tokens != "tintok":
            raise HuvrError(f"tokens {encoder.tokens}: reconstruction is from TinToks: --tokens tintok")
        for name, chosen, allowed in (("lpips", lpips, LPIPSNet), ("rivals", rivals, Rival)):
            if not {*chosen} <= {*get_args(allowed)} or len({*chosen}) < len(chosen):
                raise HuvrError(f"{name} {list(chosen)}: choose among {', '.join(get_args(allowed))}, each once")
        if unused := sorted({*(lpips_trunks or {})} - {*lpips}):
            raise HuvrError(f"lpips_trunks {', '.join(unused)}: not among lpips {list(lpips)}")
        if refine < 0:
            raise HuvrError(f"refine {refine}: expected a number of steps, 0 or more")
        self.config, self.net = encoder, load(encoder.source).requires_grad_(False)
        self.details: dict[str, Any] = {}
        if not isinstance(self.net, PatchwiseHUVR):
            self.details["tokens"] = f"parameters of {type(self.net).__name__}"
        self.nets, self.trunks = lpips, lpips_trunks or {}
        self.frechet, self.rivals, self.sdvae, self.refine = frechet, rivals, sdvae, refine

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        self.lpips: dict[str, LPIPSLoss] = {}
        for net in self.nets:
            try:
                self.lpips[net] = LPIPSLoss(net, self.trunks.get(net), device)
            except HuvrError as error:
                raise HuvrError(f"lpips_trunks.{net}: {error}") from None
        self.network = FrechetNetwork(self.frechet, device) if self.frechet else None
        self.formats = {name: self._format(name, device) for name in self.rivals}
        self.scores = {name: Score(self.network) for name in ("ours", *self.formats)}
        self.images = 0
        self.shown: list[list[Tensor]] = []

    def _format(self, name: Rival, device: torch.device) -> Format:
        """A rival, ready to store images."""
        if name == "jpeg":
            return jpeg
        kind = self.config.stored
        if name == "sdvae":
            vae = SDVAE(self.sdvae, device)
            return lambda images, _: vae.stored(images, kind)
        batches = (batch["image"].to(device).float() / 255 for batch in self._data.train_dataloader() if batch)
        pca = PatchPCA(batches, self.net.net.patch if isinstance(self.net, PatchwiseHUVR) else PCA_PATCH)
        return lambda images, limit: pca.stored(images, kind, limit)

    @property
    def _data(self) -> Pictures:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, Pictures):
            raise HuvrError("data: reconstruction is of huvr.tasks.pictures.Pictures")
        return data

    def test_step(self, batch: Batch, index: int) -> None:
        if not batch:
            return
        originals = batch["image"]
        images = images_of(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            parameters = self.net.encode(images)
        kept, size = parameters_stored(self.net.refine(parameters, images, self.refine), self.config.stored)
        drawn = self.net.render(kept)
        drawings = {"ours": (drawn, [size] * len(images))} | {name: way(images, size) for name, way in self.formats.items()}
        features = self.network(originals) if self.network else None
        for name, (drawing, sizes) in drawings.items():
            picture = to_uint8(drawing).to(self.device)
            self.scores[name].add(self._measures(drawing, picture, images), sizes, size, images[0, 0].numel())
            if self.network and features is not None:
                self.scores[name].compare(features, self.network(picture))
        self.images += len(images)
        tiles = zip(images, *(drawing for drawing, _ in drawings.values()), strict=True)
        self.shown += [[tile.cpu() for tile in row] for row in islice(tiles, SHOWN - len(self.shown))]

    def _measures(self, drawing: Tensor, picture: Tensor, images: Tensor) -> dict[str, Tensor]:
        """One value per image of each; ``picture`` is the drawing in 8 bits."""
        return {
            "psnr": psnr(drawing, images).clamp_max(PSNR_MOST),
            "psnr_8bit": psnr(picture / 255, images).clamp_max(PSNR_MOST),
            "ssim": ssim(drawing, images),
            "ssim_nhwc": ssim_nhwc(drawing, images),
            **{f"lpips_{net}": lpips.distances(drawing, images) for net, lpips in self.lpips.items()},
        }

    def on_test_epoch_end(self) -> None:
        if self.network and self.images < 2:
            raise HuvrError(f"frechet: {self.images} image(s), at least 2 are needed")
        results = {name: score.result() for name, score in self.scores.items()}
        ours = results.pop("ours")
        self.log_dict(ours["metrics"])
        self.details |= {name: ours[name] for name in ("bytes_per_image", "bits_per_pixel")}
        self.details |= {"rivals": results, "data": self._data.description(self.images)}
        if self.trainer.is_global_zero:
            save_png(side_by_side(self.shown), Path(self.trainer.default_root_dir) / "drawings.png")


class Score:
    """What is measured of one format, added up over the images."""

    def __init__(self, network: FrechetNetwork | None) -> None:
        self.means: dict[str, MeanMetric] = defaultdict(mean)
        self.bytes, self.bits_per_pixel, self.larger = mean(), mean(), 0
        self.distances = {network.name: network.distance()} if network else {}

    def add(self, measures: dict[str, Tensor], sizes: list[int], tintoks: int, pixels: int) -> None:
        """Measures of a batch, one value per image each, its bytes, and the bytes of TinToks and the pixels of every image."""
        for name, values in measures.items():
            self.means[name].update(values.cpu())
        self.bytes.update(torch.tensor(sizes))
        self.bits_per_pixel.update(8 * torch.tensor(sizes).double() / pixels)
        self.larger += sum(size > tintoks for size in sizes)

    def compare(self, originals: Tensor, drawings: Tensor) -> None:
        """Features of a batch that the Fréchet network gave."""
        for distance in self.distances.values():
            distance.update(originals.cpu(), real=True)
            distance.update(drawings.cpu(), real=False)

    def result(self) -> dict[str, Any]:
        metrics = {name: metric.compute().item() for name, metric in [*self.means.items(), *self.distances.items()]}
        costs = {"bytes_per_image": self.bytes.compute().item(), "bits_per_pixel": self.bits_per_pixel.compute().item()}
        return costs | {"images_larger_than_tintoks": self.larger, "metrics": metrics}


def mean() -> MeanMetric:
    """In fp64: there may be a million images."""
    return MeanMetric().set_dtype(torch.float64)  # type: ignore[return-value]


def side_by_side(rows: list[list[Tensor]]) -> Tensor:
    """Pictures ``(3, H, W)``, one row of them per image, as one of uint8; smaller ones get a white margin."""
    tiles = [tile for row in rows for tile in row]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    padded = [F.pad(tile.clamp(0, 1), (0, width - tile.shape[2], 0, height - tile.shape[1]), value=1.0) for tile in tiles]
    return to_uint8(make_grid(padded, nrow=len(rows[0]), padding=GAP, pad_value=1.0)[:, GAP:-GAP, GAP:-GAP])
