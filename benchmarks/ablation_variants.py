"""The variants of HUVR that ``ablations.py`` compares, and the two networks among them that the package does not have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.model import HUVR, HUVRConfig, Tokens
from huvr.model.inr import ReleasedPatchINR, cell_centres, encode_positions, unit_columns
from huvr.pretrain import PLACES
from huvr.teacher import TeacherConfig

CONFIG = HUVRConfig(
    image_size=96, patch=16, width=128, depth=4, heads=4, tintok_dim=32, decoder_width=128, decoder_depth=2, decoder_heads=4,
    decoder_hidden=512, inr_widths=(128, 128, 128),
)  # fmt: skip
HALF = (0.5, 0.5, 0.5)


class ImageINR(ReleasedPatchINR):
    """One INR an image, over coordinates of the whole image: token k gives columns k, k + N, … of the modulated layer.

    As TransINR does, and the released code with ``is_patch_mode`` off. Expects as many tokens as patches, of which the grid
    tells the size of the picture.
    """

    def forward(self, tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        u, c = self.to_patch(tokens.patches), self.to_global(tokens.cls)
        lines = ((side * self.cells, 2 * shift / (side * self.patch)) for side, shift in zip(tokens.grid, phase, strict=True))
        points = torch.meshgrid(*(cell_centres(count, shift, u.device) for count, shift in lines), indexing="ij")
        encoded = encode_positions(torch.stack(points, dim=-1), self.frequencies, self.max_frequency).to(u.dtype)

        first, second, third = self.layers
        x = F.relu(F.linear(encoded, unit_columns(first.weight), first.bias)).flatten(0, 1)
        token = torch.arange(second.out_features, device=u.device) % u.shape[1]
        weight = F.normalize(second.weight * u[:, token] * c[:, :, None], dim=2)  # (B, out, in)
        x = F.relu(x @ weight.transpose(1, 2) + second.bias)
        x = F.relu(F.linear(x, unit_columns(third.weight), third.bias))
        features = x.transpose(1, 2).unflatten(2, encoded.shape[:2])
        return F.pixel_shuffle(self.paint(features), self.upsample)


class ImageWise(HUVR):
    """HUVR with one INR an image; learned tokens of the encoder, as many as patches, take the place of patch tokens."""

    def __init__(self, config: HUVRConfig) -> None:
        super().__init__(replace(config, registers=(config.image_size // config.patch) ** 2))
        c = self.config
        self.inr = ImageINR(c.decoder_width, c.inr_widths, c.inr_frequencies, c.inr_max_frequency, c.patch, c.inr_upsample)

    def encode(self, images: Tensor) -> Tokens:
        encoder = self.encoder
        found = encoder.vit.forward_features((images - encoder.mean) / encoder.std)[:, : 1 + self.config.registers]
        return Tokens.from_sequence(found, (images.shape[-2] // self.patch, images.shape[-1] // self.patch))


class Constant(nn.Module):
    """The same vector whatever the input."""

    def __init__(self, value: float, dim: int) -> None:
        super().__init__()
        self.value, self.dim = value, dim

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((*x.shape[:-1], self.dim), self.value)


def without_global(config: HUVRConfig) -> HUVR:
    """The INR modulated by patch tokens alone: the factor of the global token is one."""
    net = HUVR(config)
    net.inr.to_global = Constant(1.0 if config.modulation == "released" else 0.0, config.inr_widths[1])
    if net.inr.cosine_head is not None:
        net.inr.cosine_head.of_global.requires_grad_(False)  # zero, and stays so
    return net


@dataclass(frozen=True)
class Variant:
    """What differs from the default.

    Attributes:
        group: of rows that belong together.
        changes: fields of ``CONFIG``.
        make: the network.
        teachers: by their names in ``TEACHERS``.
        places: of distillation.
        tap: layer of the decoder that is distilled.
    """

    group: str
    changes: dict[str, Any] = field(default_factory=dict)
    make: Callable[[HUVRConfig], HUVR] = HUVR
    teachers: tuple[str, ...] = ()
    places: tuple[str, ...] = PLACES
    tap: int = 1


TEACHERS = {
    "vit": TeacherConfig("vit_tiny_patch16_224", mean=HALF, std=HALF),
    "mobilenet": TeacherConfig("mobilenetv2_100", mean=HALF, std=HALF, arguments={"pad_type": "same"}),
}
RELEASED = {"modulation": "released"}
VARIANTS = {
    "default": Variant("default"),
    "released modulation": Variant("inr", RELEASED),
    "released modulation, one INR an image": Variant("inr", RELEASED, ImageWise),
    "no global token": Variant("global", {}, without_global),
    "released modulation, no global token": Variant("global", RELEASED, without_global),
    "attention in the decoder": Variant("decoder", {"decoder_attention": True}),
    **{f"TinToks of {dim}": Variant("tintoks", {"tintok_dim": dim}) for dim in (8, 16, 64, 256)},
    "ViT": Variant("distillation", teachers=("vit",)),
    "ViT, decoder tapped at its end": Variant("distillation", teachers=("vit",), tap=CONFIG.decoder_depth),
    "ViT, encoder only": Variant("distillation", teachers=("vit",), places=PLACES[:2]),
    "ViT, decoder only": Variant("distillation", teachers=("vit",), places=PLACES[2:]),
    "ViT, global tokens only": Variant("distillation", teachers=("vit",), places=PLACES[::2]),
    "MobileNet": Variant("distillation", teachers=("mobilenet",)),
    "ViT and MobileNet": Variant("distillation", teachers=("vit", "mobilenet")),
}
