"""The shape of the network that most tests use."""

from __future__ import annotations

from huvr.model import HUVRConfig

TINY = HUVRConfig(
    image_size=32, patch=8, width=48, depth=1, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_heads=3,
    decoder_hidden=96, inr_widths=(16, 16, 16), inr_frequencies=4, inr_max_frequency=8.0,
)  # fmt: skip
