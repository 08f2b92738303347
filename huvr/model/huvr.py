"""HUVR: one encoder for seeing and drawing (arXiv 2601.14256). The whole chain on one screen."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.model.bottleneck import Bottleneck
from huvr.model.decoder import TokenDecoder
from huvr.model.encoder import Encoder, released_vit
from huvr.model.inr import PatchINR, ReleasedPatchINR
from huvr.model.tokens import Tokens
from huvr.refine import refined

Positions = Literal["scaled", "index"]
Modulation = Literal["free", "released"]
_POSITIVE = (
    "image_size", "patch", "width", "depth", "heads", "tintok_dim", "decoder_width", "decoder_heads", "decoder_hidden",
    "inr_frequencies", "inr_upsample",
)  # fmt: skip


@dataclass(frozen=True)
class HUVRConfig:
    """The shape of a HUVR network; the defaults are ViT-B/16 with TinToks of 32.

    Attributes:
        image_size: side of the training images in pixels; any other size works too.
        patch: patch size in pixels.
        encoder: a timm ViT by name; None builds the released encoder from width, depth and heads.
        width, depth, heads: of the released encoder.
        registers: register tokens of the released encoder.
        positions: of the released encoder away from ``image_size``, see ``released_vit``.
        tintok_dim: numbers per TinTok.
        decoder_width, decoder_depth, decoder_heads, decoder_hidden: of the token decoder.
        decoder_attention: whether its layers mix tokens.
        inr_widths: outputs of the three layers of the INR.
        inr_frequencies: frequencies of the positional encoding, per coordinate.
        inr_max_frequency: the highest of them.
        inr_upsample: pixels per INR coordinate, along each axis.
        modulation: "free" is ours, with the cosine head; "released" keeps every detail of the released code.
        distill_dims: distillation heads, place to teacher width; "encoder_cls", "encoder_patches",
            "decoder_cls", "decoder_patches", with "_1", "_2" … appended for further teachers.
    """

    image_size: int = 256
    patch: int = 16
    encoder: str | None = None
    width: int = 768
    depth: int = 12
    heads: int = 16
    registers: int = 0
    positions: Positions = "scaled"
    tintok_dim: int = 32
    decoder_width: int = 1024
    decoder_depth: int = 4
    decoder_heads: int = 16
    decoder_hidden: int = 4096
    decoder_attention: bool = False
    inr_widths: tuple[int, int, int] = (256, 256, 256)
    inr_frequencies: int = 32
    inr_max_frequency: float = 1024.0
    inr_upsample: int = 4
    modulation: Modulation = "free"
    distill_dims: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in {"positions": Positions, "modulation": Modulation}.items():
            if getattr(self, name) not in get_args(allowed):
                raise HuvrError(f"{name} {getattr(self, name)!r}: choose one of {', '.join(get_args(allowed))}")
        least = {"registers": 0, "decoder_depth": 0} | dict.fromkeys(_POSITIVE, 1)
        for name, limit in least.items():
            if not isinstance(value := getattr(self, name), int) or value < limit:
                raise HuvrError(f"{name} {value!r}: expected {limit} or more")
        if min(*self.inr_widths, self.inr_max_frequency) <= 0:
            raise HuvrError(f"inr_widths {self.inr_widths}, inr_max_frequency {self.inr_max_frequency}: expected above 0")
        if self.encoder is None and (self.width % self.heads or self.width // self.heads % 4):
            raise HuvrError(f"width {self.width}, heads {self.heads}: each head needs the same width, a multiple of 4")
        if self.decoder_attention and self.decoder_width % self.decoder_heads:
            raise HuvrError(f"decoder_width {self.decoder_width} is not a multiple of decoder_heads {self.decoder_heads}")


PRESETS: dict[str, HUVRConfig] = {
    "tiny": HUVRConfig(
        width=192, heads=3, decoder_width=192, decoder_depth=2, decoder_heads=3, decoder_hidden=768,
        decoder_attention=True, inr_widths=(128, 128, 128),
    ),
    "small": HUVRConfig(width=384, heads=6, decoder_width=512, decoder_heads=8, decoder_hidden=2048),
    "base": HUVRConfig(),
    "large": HUVRConfig(width=1024, depth=24, decoder_width=1280),
}  # fmt: skip


def check_images(images: Tensor) -> None:
    """Raises HuvrError unless they are ``(B, 3, H, W)`` of floating-point numbers, not empty."""
    if not isinstance(images, Tensor):
        raise HuvrError(f"images of type {type(images).__name__}: expected a tensor (B, 3, H, W) in [0, 1]")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise HuvrError(f"images of shape {tuple(images.shape)}: expected (B, 3, H, W), each 1 or more")
    if not images.is_floating_point():
        raise HuvrError(f"images of {images.dtype}: expected floating-point numbers in [0, 1]")


def warn_of_range(images: Tensor) -> None:
    """A warning for images that are bytes made floats, or normalised: no filter for photographs leaves [0, 1] that far."""
    if images.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    try:
        low, high = torch.stack(images.aminmax()).tolist()
    except RuntimeError:  # no values to be read: on the meta device, under vmap, where a graph is traced
        return
    if low < -0.5 or high > 1.5:
        warnings.warn(f"images from {low:.3g} to {high:.3g}: expected numbers in [0, 1], not normalised", stacklevel=3)


def check_tokens(tokens: Tokens, verb: str, kind: str, dim: int) -> None:
    """Raises HuvrError unless they are what ``verb`` takes: tokens of ``dim`` numbers."""
    if not isinstance(tokens, Tokens):
        raise HuvrError(f"{verb} takes {kind}, as huvr.model.Tokens, not {type(tokens).__name__}")
    if tokens.dim != dim:
        raise HuvrError(f"tokens of {tokens.dim} numbers: {verb} takes {kind}, of {dim}")


class HUVR(nn.Module):
    """Image → standard tokens → TinToks → decoder tokens → image. Images are float in [0, 1] throughout."""

    def __init__(self, config: HUVRConfig) -> None:
        super().__init__()
        c = self.config = config
        released = c.modulation == "released"
        if c.encoder is None:
            self.encoder = Encoder(released_vit(c.image_size, c.patch, c.width, c.depth, c.heads, c.registers, c.positions))
        else:
            self.encoder = Encoder.from_timm(c.encoder, c.image_size)
        self.patch = self.encoder.patch
        self.bottleneck = Bottleneck(self.encoder.dim, c.tintok_dim, c.decoder_width, norm_up=released)
        self.decoder = TokenDecoder(
            c.decoder_width, c.decoder_depth, c.decoder_heads, c.decoder_hidden, c.decoder_attention, doubling=released
        )
        inr = ReleasedPatchINR if released else PatchINR
        self.inr = inr(c.decoder_width, c.inr_widths, c.inr_frequencies, c.inr_max_frequency, self.patch, c.inr_upsample)
        self.distill = nn.ModuleDict({place: self._distill_head(place, dim) for place, dim in c.distill_dims.items()})

    def _distill_head(self, place: str, teacher_dim: int) -> nn.Sequential:
        dim = self.encoder.dim if place.startswith("encoder") else self.config.decoder_width
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, teacher_dim))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> HUVR:
        """One of ``PRESETS`` with fields changed, e.g. ``HUVR.preset("tiny", tintok_dim=8)``."""
        if name not in PRESETS:
            raise HuvrError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
        if unknown := changes.keys() - (known := [each.name for each in fields(HUVRConfig)]):
            raise HuvrError(f"preset {name}: no field {', '.join(sorted(unknown))}; choose among {', '.join(known)}")
        return cls(replace(PRESETS[name], **changes))

    def encode(self, images: Tensor) -> Tokens:
        """Images ``(B, 3, H, W)`` of any size to standard tokens; the grid covers the image, its edge repeated where needed."""
        check_images(images)
        if not (self.training or torch.compiler.is_compiling()):
            warn_of_range(images)
        down, right = (-side % self.patch for side in images.shape[-2:])
        return self.encoder(F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images)

    def compress(self, tokens: Tokens) -> Tokens:
        """Standard tokens to TinToks, ``tintok_dim`` numbers each."""
        check_tokens(tokens, "compress", "standard tokens", self.encoder.dim)
        return self.bottleneck.compress(tokens)

    def expand(self, tintoks: Tokens) -> Tokens:
        """TinToks to decoder tokens, ready to render."""
        check_tokens(tintoks, "expand", "TinToks", self.config.tintok_dim)
        return self.decoder(self.bottleneck.expand(tintoks))[0]

    def render(self, tokens: Tokens, size: tuple[int, int] | None = None, scale: int = 1) -> Tensor:
        """Decoder tokens to a picture, unclamped.

        Args:
            tokens: decoder tokens.
            size: (H, W) of the picture at scale 1, at most the grid times the patch (the default).
            scale: pixels drawn per pixel along each axis; the INR is sampled at scale² phases inside each
                pixel, so scale 1 is exactly the picture of training.

        Returns:
            ``(B, 3, scale * H, scale * W)``.
        """
        check_tokens(tokens, "render", "decoder tokens", self.config.decoder_width)
        if not scale >= 1 or scale % 1:
            raise HuvrError(f"scale {scale}: expected a whole number, 1 or more")
        limit = (tokens.grid[0] * self.patch, tokens.grid[1] * self.patch)
        height, width = size or limit
        if not (0 < height <= limit[0] and 0 < width <= limit[1]):
            raise HuvrError(f"size {height}x{width}: this grid of tokens covers 1x1 to {limit[0]}x{limit[1]} pixels")
        scale = int(scale)
        shifts = [(index + 0.5) / scale - 0.5 for index in range(scale)]
        phases = torch.stack([self.paint(tokens, (dy, dx)) for dy in shifts for dx in shifts], dim=2)
        return F.pixel_shuffle(phases.flatten(1, 2), scale)[..., : scale * height, : scale * width]

    def paint(self, tokens: Tokens, phase: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Render at scale 1 with the sampled points moved by ``phase`` pixels: ``(B, 3, h * patch, w * patch)``."""
        return self.inr(tokens, phase) / 2 + 0.5

    def reconstruct(self, images: Tensor) -> Tensor:
        """The whole chain: ``(B, 3, H, W)`` to ``(B, 3, H, W)``."""
        decoded = self.expand(self.compress(self.encode(images)))
        height, width = images.shape[-2:]
        return self.render(decoded, size=(height, width))

    def refine(self, tintoks: Tokens, images: Tensor, steps: int) -> Tokens:
        """TinToks from which their images ``(B, 3, H, W)`` are drawn better, see :func:`huvr.refine.refined`.

        The global one stays, so that images are recognised by it as before; refining it too hardly shows.
        """
        check_images(images)
        check_tokens(tintoks, "refine", "TinToks", self.config.tintok_dim)
        (height, width), precision = images.shape[-2:], self.inr.to_pixels.weight.dtype
        if (grid := (-(-height // self.patch), -(-width // self.patch))) != tuple(tintoks.grid):
            raise HuvrError(f"refine: images of {height}x{width} have a grid of {grid}, these TinToks one of {tintoks.grid}")

        def draw(patches: Tensor) -> Tensor:
            cls = tintoks.cls.to(precision, copy=True)  # an inference tensor would let no gradient pass
            return self.render(self.expand(replace(tintoks, cls=cls, patches=patches)), size=(height, width))

        (patches,) = refined(draw, [tintoks.patches.to(precision)], images, steps)
        return replace(tintoks, cls=tintoks.cls.to(precision), patches=patches)

    def save(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; :func:`huvr.load` reads them back."""
        from huvr.weights import save

        save(self, directory)

    forward = reconstruct
