"""A masked autoencoder (He et al., arXiv 2111.06377), the published rival of MINR; it is no INR and paints whole patches."""

from __future__ import annotations

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.hypernets.interface import HyperINR, INRParameters
from huvr.model.tokens import Tokens


class MAE(HyperINR):
    """A ViT encodes the visible patches, a smaller one paints the hidden ones (facebookresearch/mae, models_mae.py).

    A patch with any hidden pixel counts as hidden, so masking cells should be as large as patches. Since the masks may
    hide more patches of one image than of another, the encoder sees as many as the image with most has visible, and
    no attention goes to the surplus. Positions are those of the fixed sine table. Pixels are in [-1, 1] inside, not
    normalised per patch, so that PSNR can be measured. The default is as large as TransINR.

    Args:
        patch: side of a patch in pixels.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
    """

    def __init__(
        self,
        patch: int = 13,
        width: int = 768,
        depth: int = 5,
        heads: int = 12,
        decoder_width: int = 512,
        decoder_depth: int = 3,
        decoder_heads: int = 16,
    ) -> None:
        super().__init__(
            patch=patch, width=width, depth=depth, heads=heads, decoder_width=decoder_width, decoder_depth=decoder_depth,
            decoder_heads=decoder_heads,
        )  # fmt: skip
        if min(patch, depth, heads, decoder_depth, decoder_heads) < 1:
            raise HuvrError(f"patch {patch}, depths {depth} and {decoder_depth}: expected whole numbers, 1 or more")
        for wide, over in ((width, heads), (decoder_width, decoder_heads)):
            if wide < 1 or wide % over or wide % 4:
                raise HuvrError(f"width {wide}, heads {over}: expected a multiple of 4 and of the heads")
        self.least, self.patch, self.num_features = patch, patch, width

        def layer(dim: int, heads: int) -> Block:
            return Block(dim, heads, qkv_bias=True)

        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.encoder = nn.ModuleList(layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_decoder = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.decoder = nn.Sequential(*(layer(decoder_width, decoder_heads) for _ in range(decoder_depth)))
        self.to_pixels = nn.Sequential(nn.LayerNorm(decoder_width, eps=1e-6), nn.Linear(decoder_width, 3 * patch**2))
        nn.init.xavier_uniform_(self.embed.weight.view(width, -1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, images: Tensor, mask: Tensor | None = None) -> INRParameters:
        """The decoder's input: what the encoder says of visible patches, mask tokens for the others.

        Raises:
            HuvrError: without a mask, as there is nothing to paint then.
        """
        size = self.check(images)
        if mask is None:
            raise HuvrError("MAE paints hidden patches only: it needs a mask (model.masking in training, huvr probe --task minr)")
        hidden = self.hidden_patches(mask).flatten(1)
        encoded, kept = self._encoded(images, hidden)
        encoded = self.to_decoder(encoded)
        place = kept[..., None].expand(-1, -1, encoded.shape[2])
        patches = self.mask_token.expand(*hidden.shape, -1).to(encoded.dtype).scatter(1, place, encoded[:, 1:])
        patches = torch.where(hidden[..., None], self.mask_token.to(encoded.dtype), patches)  # the surplus is hidden too
        return INRParameters((torch.cat([encoded[:, :1], patches], dim=1),), size)

    def tokens(self, images: Tensor) -> Tokens:
        """All patches visible, as in fine-tuning."""
        height, width = self.check(images)
        grid = (height // self.patch, width // self.patch)
        nothing = torch.zeros(len(images), grid[0] * grid[1], dtype=torch.bool, device=images.device)
        return Tokens.from_sequence(self._encoded(images, nothing)[0], grid)

    def hidden_patches(self, mask: Tensor) -> Tensor:
        """Masks ``(B, 1, H, W)`` of pixels to those of patches ``(B, h, w)``."""
        return F.max_pool2d(mask.float(), self.patch)[:, 0] > 0

    def check(self, images: Tensor) -> tuple[int, int]:
        height, width = super().check(images)
        if height % self.patch or width % self.patch:
            raise HuvrError(f"images of {height}x{width} pixels: MAE takes multiples of its patch of {self.patch}")
        return height, width

    def _encoded(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of cls and visible patches ``(B, 1 + V, width)``, and which patches these are, ``(B, V)``."""
        picture = self.embed(2 * images - 1)
        patches = picture.flatten(2).transpose(1, 2) + sine_table(picture, picture.shape[1])
        count = int((~hidden).sum(1).max())
        kept = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]  # the visible ones come first
        x = torch.cat(
            [self.cls_token.expand(len(patches), -1, -1), patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))], 1
        )
        surplus = F.pad(hidden.gather(1, kept), (1, 0))
        attended = ~surplus[:, None, None] if surplus.any() else None
        for layer in self.encoder:
            x = layer(x, attended)
        return self.norm(x), kept

    def _paint(self, parameters: INRParameters, coordinates: Tensor) -> Tensor:
        raise HuvrError("MAE paints whole patches of pixels: it cannot be asked at coordinates")

    def render(self, parameters: INRParameters, size: tuple[int, int] | None = None, scale: float = 1.0) -> Tensor:
        """Prediction for every patch, also for visible ones, which training leaves out."""
        if size not in (None, parameters.size) or scale != 1:
            raise HuvrError("MAE paints pixels of its own size only: leave size and scale out")
        (x,), (h, w) = parameters.tensors, (side // self.patch for side in parameters.size)
        positions = sine_table(x.new_empty(1, 1, h, w), x.shape[2])
        x = self.to_pixels(self.decoder(x + F.pad(positions, (0, 0, 1, 0))))[:, 1:]
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (h, w)), self.patch) / 2 + 0.5

    def reconstruct(
        self, images: Tensor, size: tuple[int, int] | None = None, scale: float = 1.0, mask: Tensor | None = None
    ) -> Tensor:
        """Visible patches as they are, hidden ones painted."""
        painted = super().reconstruct(images, size, scale, mask)
        return torch.where(self._hidden_pixels(mask), painted, images)

    def loss(self, painted: Tensor, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean squared error over the hidden patches alone, in [-1, 1]."""
        hidden = self._hidden_pixels(mask)
        squares = 4 * (painted.float() - images.float()).square().mean(1, keepdim=True)
        return (squares * hidden).sum() / hidden.sum().clamp_min(1)

    def _hidden_pixels(self, mask: Tensor | None) -> Tensor:
        if mask is None:
            raise HuvrError("MAE's loss is that of hidden patches: it needs a mask")
        patches = self.hidden_patches(mask)
        return patches.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)[:, None]


def sine_table(picture: Tensor, width: int) -> Tensor:
    """Fixed positions of a grid ``(…, h, w)``: ``(h * w, width)``."""
    return build_sincos2d_pos_embed(list(picture.shape[-2:]), width, device=picture.device, dtype=picture.dtype)
