"""What TinToks are compared with as a picture format: per-patch PCA, JPEG, and the VAE of Stable Diffusion."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable
from textwrap import shorten

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from huvr.errors import HuvrError
from huvr.viz import to_uint8

from .pca import PCA, Moments
from .storage import Storage, as_stored, size_stored

QUALITIES = range(1, 101)  # of JPEG, as Pillow counts them


class PatchPCA:
    """Per-patch PCA: the honest simple rival of TinToks of the same size.

    Args:
        images: batches ``(B, 3, H, W)`` to fit it to.
        patch: in pixels.
        components: numbers kept per patch; None or more than the ``3 * patch²`` it has keeps all.
    """

    def __init__(self, images: Iterable[Tensor], patch: int, components: int | None = None) -> None:
        self.patch, dim = patch, 3 * patch**2
        moments: Moments | None = None
        for batch in images:
            moments = moments or Moments(dim, batch.device)
            moments.add(self._patches(batch).flatten(0, 1))
        if moments is None:
            raise HuvrError("per-patch PCA: no images to fit it to")
        self.pca = PCA(moments, min(components or dim, dim))

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` from the components of their patches, unclamped."""
        return self._decoded(self.pca(self._patches(images)), images)

    def stored(self, images: Tensor, kind: Storage, limit: int) -> tuple[Tensor, list[int]]:
        """The same from the first components of each patch, one at least, as they come back from where they were stored.

        Args:
            images: ``(B, 3, H, W)`` in [0, 1].
            kind: of storage.
            limit: bytes of each image, which decide how many components are kept.

        Returns:
            The images, and the bytes of each.
        """
        components = self.pca(self._patches(images))
        numbers = range(1, components.shape[2] + 1)
        fitting = bisect_right(numbers, limit // components.shape[1], key=lambda number: size_stored(number, kind))
        kept = as_stored(components[..., : max(fitting, 1)], kind)
        size = kept.shape[1] * size_stored(kept.shape[2], kind)
        return self._decoded(kept, images), [size] * len(images)

    def _patches(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, h * w, 3 * patch²)``, the edge repeated up to whole patches as for the network."""
        return F.unfold(whole_steps(images, self.patch), self.patch, stride=self.patch).transpose(1, 2)

    def _decoded(self, components: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        patches = (components @ self.pca.basis[:, : components.shape[2]].T + self.pca.mean).transpose(1, 2)
        covered = (height + -height % self.patch, width + -width % self.patch)
        return F.fold(patches, covered, self.patch, stride=self.patch)[..., :height, :width]


def jpeg(images: Tensor, limit: int) -> tuple[Tensor, list[int]]:
    """Images at the greatest JPEG quality whose file has at most ``limit`` bytes, at quality 1 where even that has more.

    Files are as Pillow writes them, 4:2:0, with optimised Huffman tables. The quality is found by bisection, as the size
    grows with it. What was a JPEG already, and was not resampled since, comes out almost as it went in: on its own grid of
    blocks it has been quantised before.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        limit: bytes of each file, headers included.

    Returns:
        The decoded images, and the bytes of each file.
    """
    files = [_fitting(to_pil_image(image), limit) for image in to_uint8(images)]
    decoded = torch.stack([pil_to_tensor(Image.open(io.BytesIO(file))) for file in files])
    return decoded.to(images.device).float() / 255, [len(file) for file in files]


def _fitting(picture: Image.Image, limit: int) -> bytes:
    def encoded(quality: int) -> bytes:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        return file.getvalue()

    fitting = bisect_right(QUALITIES, limit, key=lambda quality: len(encoded(quality)))
    return encoded(QUALITIES[max(fitting - 1, 0)])


class SDVAE:
    """The autoencoder of Stable Diffusion: latents of 4 numbers, one for 8x8 pixels (Rombach et al., arXiv 2112.10752).

    Args:
        source: a diffusers repository on the Hugging Face hub, or a folder with the same files.
        device: where it runs.

    Raises:
        HuvrError: without diffusers, and for weights that cannot be loaded.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise HuvrError(f"rivals: sdvae needs diffusers ({error}): pip install 'huvr[sdvae]'") from None
        try:
            vae = AutoencoderKL.from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = shorten(str(error), 200)
            raise HuvrError(f"sdvae {source}: not to be had ({reason}); allowed: a hub repository or a local folder") from None
        self.vae = vae.eval().requires_grad_(False).to(device)
        self.step = 2 ** (len(vae.config.block_out_channels) - 1)

    def stored(self, images: Tensor, kind: Storage) -> tuple[Tensor, list[int]]:
        """Images ``(B, 3, H, W)`` in [0, 1] from stored latents (the mean of the posterior), and the bytes of each image."""
        height, width = images.shape[-2:]
        latents = self.vae.encode(2 * whole_steps(images, self.step) - 1).latent_dist.mode()
        kept = as_stored(latents.movedim(1, -1), kind)
        size = kept[0, ..., 0].numel() * size_stored(kept.shape[-1], kind)
        drawn = self.vae.decode(kept.movedim(-1, 1)).sample / 2 + 0.5
        return drawn[..., :height, :width], [size] * len(images)


def whole_steps(images: Tensor, step: int) -> Tensor:
    """``(B, 3, H, W)`` with the edge repeated until both sides are multiples of ``step``."""
    down, right = (-side % step for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images
