"""The frozen encoder as a backbone of mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from huvr.errors import HuvrError
from huvr.model.encoder import is_vit

from ..base import EncoderConfig, FrozenEncoder
from ..storage import as_stored

SCALES = (4, 2, 1, 0.5)  # places a patch of the maps in a pyramid, which are 1/4 to 1/32 of an image in patches of 16 pixels


@MODELS.register_module()
class HUVRBackbone(BaseModule):
    """Images to maps of frozen tokens.

    The encoder belongs to no checkpoint of mmengine, and neither learns nor leaves its evaluation mode, whatever ``train`` says.

    Args:
        out_indices: blocks whose outputs, through the final norm, are the maps; -1 is the last. None gives one map, of the
            final tokens.
        pyramid: give four maps of 4, 2, 1 and 1/2 places a patch and side, made of the one map, or each of one of four. This
            is mmsegmentation's Feature2Pyramid, the simple pyramid of ViTDet (arXiv 2203.16527, section 3): transposed
            convolutions, which learn, for 4 and 2, and the maximum of 2×2 for 1/2.
        norm_cfg: normalisation inside the pyramid; None is SyncBN, which mmengine makes BN where there is one process.
        init_cfg: of mmengine.
        encoder: fields of :class:`~huvr.tasks.base.EncoderConfig`.

    Attributes:
        out_channels: channels of each map, what a head's ``in_channels`` have to be.

    Raises:
        HuvrError: for an encoder that cannot be loaded, layers that it lacks, or a number of maps that makes no pyramid.
    """

    def __init__(
        self,
        out_indices: Sequence[int] | None = None,
        pyramid: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
        **encoder: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.encoder = LayersOfEncoder(EncoderConfig(**encoder), out_indices)
        count, dim, self.pyramid = len(self.encoder.layers or [-1]), self.encoder.dim, None
        if pyramid:
            if count not in (1, len(SCALES)):
                raise HuvrError(f"out_indices {[*(out_indices or ())]}: a pyramid is made of 1 map or of {len(SCALES)}")
            norm = {"norm_cfg": norm_cfg} if norm_cfg else {}
            self.pyramid = MODELS.build({"type": "Feature2Pyramid", "embed_dim": dim, "rescales": SCALES, **norm})
        self.out_channels = [dim] * (len(SCALES) if pyramid else count)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """RGB ``(B, 3, H, W)`` in [0, 1] to maps ``(B, C, h, w)``.

        Raises:
            HuvrError: for images that the config's data preprocessor has normalised, or not padded to whole patches.
        """
        self._check(images)
        if self.encoder.device != images.device:
            self.encoder.to(images.device)
        maps = self.encoder.maps(images)
        return self.pyramid(maps * len(SCALES) if len(maps) == 1 else maps) if self.pyramid else maps

    def _check(self, images: Tensor) -> None:
        least, most = (value.item() for value in images.aminmax())
        if least < 0 or most > 1:
            raise HuvrError(
                f"HUVRBackbone: images from {least:.3g} to {most:.3g}, expected [0, 1]: "
                "model.data_preprocessor takes mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True"
            )
        steps = self.encoder.network.patch_embed.feat_ratio(as_scalar=False)
        if any(side % step for side, step in zip(images.shape[2:], steps, strict=True)):
            height, width = images.shape[2:]
            raise HuvrError(
                f"HUVRBackbone: images of {height}x{width} pixels, expected multiples of the patch, {steps[0]}x{steps[1]}: "
                f"choose such crops to train on, and model.data_preprocessor.test_cfg=dict(size_divisor={steps[0]}) to test"
            )


class LayersOfEncoder(FrozenEncoder):
    """A frozen ViT, seen at the ends of several of its blocks in one pass.

    Raises:
        HuvrError: for tokens or layers that it cannot give, or an encoder that is no ViT.
    """

    def __init__(self, config: EncoderConfig, out_indices: Sequence[int] | None) -> None:
        if config.components:
            raise HuvrError(
                f"tokens {config.tokens}: mmsegmentation fits no principal components; choose standard, tintok or decoder"
            )
        if out_indices is not None and config.tokens != "standard":
            raise HuvrError(f"out_indices {[*out_indices]}: {config.tokens} tokens come from the last layer; leave it out")
        if out_indices is not None and config.layer is not None:
            raise HuvrError(f"out_indices {[*out_indices]}, layer {config.layer}: give one of them")
        super().__init__(config)
        if not is_vit(self.network):
            raise HuvrError(f"encoder {config.source} is no ViT; mmsegmentation has backbones of its own for such networks")
        self.layers = None if out_indices is None else [self._block(layer) for layer in out_indices]
        if self.layers is not None and (not self.layers or self.layers != sorted({*self.layers})):
            raise HuvrError(f"out_indices {[*(out_indices or ())]}: expected one layer or more, in order, none twice")

    @torch.no_grad()
    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` in [0, 1] to maps ``(B, D, h, w)`` of tokens as they come back from where they were stored."""
        if self.layers is None:
            return (self(images).map,)
        normalised = (self._fitting(images) - self.mean) / self.std
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            found = self.network.forward_intermediates(
                normalised, self.layers, norm=True, stop_early=True, intermediates_only=True
            )
        return tuple(as_stored(each.float().movedim(1, -1), self.config.stored).movedim(-1, 1) for each in found)
