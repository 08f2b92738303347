"""Vision transformers from timm, as producers of :class:`~huvr.model.tokens.Tokens`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import SwiGLU
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.model.tokens import Tokens


class AlignedSwiGLU(SwiGLU):
    """timm's SwiGLU of any hidden width, at the speed of one that GPUs like; its tensors are the same.

    The released ViT-L has 2730 hidden numbers, whose rows in 16 bits begin at no multiple of 16 bytes: tensor cores then take
    three times as long. On a GPU the products are padded with zeros to a multiple of ``WHOLE``; the norm sees none of them.
    """

    WHOLE = 64

    def forward(self, x: Tensor) -> Tensor:
        return self.aligned(x) if x.is_cuda and self.fc1_g.out_features % self.WHOLE else super().forward(x)

    def aligned(self, x: Tensor) -> Tensor:
        """The same numbers as timm's forward."""
        hidden = self.fc1_g.out_features
        more = -hidden % self.WHOLE
        widened = ((F.pad(fc.weight, (0, 0, 0, more)), F.pad(fc.bias, (0, more))) for fc in (self.fc1_g, self.fc1_x))
        gate, value = (F.linear(x, weight, bias) for weight, bias in widened)
        normed = self.norm((self.act(gate) * value)[..., :hidden])
        return F.linear(F.pad(normed, (0, more)), F.pad(self.fc2.weight, (0, more)), self.fc2.bias)


def released_vit(image_size: int, patch: int, width: int, depth: int, heads: int, registers: int, positions: str) -> Eva:
    """The encoder of the released HUVR, configured from timm's EVA-02 (HUVR, appendix on architecture).

    ``positions`` only matters away from ``image_size``: "scaled" squeezes any grid into the 16×16
    positions of the released 256-pixel models, "index" gives each patch its row and column number.
    """
    model = Eva(
        img_size=image_size,
        patch_size=patch,
        num_classes=0,
        global_pool="",
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=8 / 3,
        qkv_bias=True,
        swiglu_mlp=True,
        scale_mlp=True,
        attn_type="rope",
        num_reg_tokens=registers,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16) if positions == "scaled" else None,
        dynamic_img_size=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    initialise_as_released(model)
    for block in model.blocks:
        block.mlp.__class__ = AlignedSwiGLU  # timm makes the block; its tensors stay
    return model


def initialise_as_released(model: Any) -> None:
    """Initial weights of the released code where they differ from timm's (Xavier patch embedding, outputs scaled by depth)."""
    kernel = model.patch_embed.proj.weight
    nn.init.xavier_uniform_(kernel.view(kernel.shape[0], -1))
    for number, block in enumerate(model.blocks, start=1):
        for linear in (block.attn.proj, block.mlp.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            linear.weight.data.div_(math.sqrt(2 * number))


def is_vit(model: Any) -> bool:
    """Whether a timm model keeps one sequence of tokens, at any image size (a Swin transformer merges its patches)."""
    return getattr(model, "dynamic_img_size", False) and hasattr(model, "num_prefix_tokens")


def tokens_of(model: Any, normalised: Tensor) -> Tokens:
    """Final tokens of any timm model: ``(B, 3, H, W)``, already normalised, in; Tokens out.

    Where a network has no cls token, the mean of its patches stands for it. Registers are dropped.

    Raises:
        HuvrError: for a model whose features are neither a map nor a sequence of tokens of patches.
    """
    features = model.forward_features(normalised)
    patched = hasattr(getattr(model, "patch_embed", None), "feat_ratio")
    if not isinstance(features, Tensor) or features.ndim not in ((3, 4) if patched else (4,)):
        raise HuvrError(f"{type(model).__name__} of timm gives features that are neither a map nor tokens of patches")
    if features.ndim == 4:  # convolutional, (B, C, h, w); a few timm families are channels-last
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        patches, grid = features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
        return Tokens(patches.mean(1), patches, grid)
    prefix = getattr(model, "num_prefix_tokens", 0)
    patches = features[:, prefix:]
    down, across = model.patch_embed.feat_ratio(as_scalar=False)
    grid = (normalised.shape[-2] // down, normalised.shape[-1] // across)
    has_cls = getattr(model, "cls_token", None) is not None
    return Tokens(features[:, 0] if has_cls else patches.mean(1), patches, grid)


class Encoder(nn.Module):
    """A ViT with the normalisation of its images: ``(B, 3, H, W)`` in [0, 1] to standard tokens.

    H and W must be multiples of the patch size (``HUVR.encode`` pads to that).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3) -> None:
        super().__init__()
        self.vit: Any = vit
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @classmethod
    def from_timm(cls, name: str, image_size: int) -> Encoder:
        """Any timm ViT by name, with its own normalisation, ready for any image size.

        Raises:
            HuvrError: for a name timm does not know or a network that is no ViT.
        """
        try:  # without a pooling of its own, which no token would pass through
            vit: Any = timm.create_model(name, num_classes=0, global_pool="", img_size=image_size, dynamic_img_size=True)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise HuvrError(f"encoder {name!r} is not a timm ViT that takes any image size ({error})") from None
        if not is_vit(vit):
            raise HuvrError(f"encoder {name!r} is not a timm ViT, but a {type(vit).__name__}")
        config = vit.pretrained_cfg
        return cls(vit, config["mean"], config["std"])

    @property
    def dim(self) -> int:
        return self.vit.num_features

    @property
    def patch(self) -> int:
        down, across = self.vit.patch_embed.feat_ratio(as_scalar=False)
        if down != across:
            raise HuvrError(f"patches of {down}x{across} pixels are not square")
        return down

    def forward(self, images: Tensor) -> Tokens:
        normalised = (images - self.mean) / self.std
        return tokens_of(self.vit, normalised.to(self.mean.dtype))  # that of the network, whatever the images have
