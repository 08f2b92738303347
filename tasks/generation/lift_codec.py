"""The latents of LIFT in the place of TinToks, for a generator to learn (the second stage of LIFT, arXiv 2503.15420)."""

from __future__ import annotations

from torch import Tensor

from huvr.errors import HuvrError
from huvr.hypernets.lift_images import LIFTImages
from huvr.model.tokens import Tokens

from ..base import EncoderConfig, FrozenEncoder

LIFT_PREFIX = "lift:"


class LIFTLatents(FrozenEncoder):
    """Images to LIFT's composite latents and back, see :meth:`huvr.hypernets.lift.LIFT.tokens`.

    Args:
        source: ``lift:RUN``, a run or a checkpoint of a training of LIFT on square images.

    Raises:
        HuvrError: for another source; on looking, for images of another size than those it learned.
    """

    network: LIFTImages
    tokens = "lift"

    def __init__(self, source: str) -> None:
        super().__init__(EncoderConfig(source.removeprefix(LIFT_PREFIX)))
        if not isinstance(self.network, LIFTImages):
            raise HuvrError(f"encoder {source}: not a run of LIFT; expected one of huvr fit --config hypernets/lift_image.yaml")
        size, self.source = self.network.size, source
        if len({*size}) != 1:
            raise HuvrError(f"encoder {source}: it learned images of size {size}, expected square ones")
        self.patch = size[0] // self.network.lift.config.latents[-1][0]

    def look(self, images: Tensor) -> Tokens:
        """Images ``(B, 3, H, W)`` in [0, 1], as large as those it learned, to tokens."""
        (height, width), side = images.shape[-2:], self.network.size[0]
        if (height, width) != self.network.size:
            raise HuvrError(
                f"images of {height}x{width} pixels: {self.source} learned latents of {side}x{side}: set data.size {side}"
            )
        return super().look(images)

    def draw(self, tokens: Tokens, scale: int = 1) -> Tensor:
        """Pictures ``(B, 3, H, W)``, unclamped, ``scale`` times as large."""
        return self.network.lift.render(tokens, self.network.size, scale)
