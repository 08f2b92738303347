"""What the tests of verbs and of tasks begin with."""

from __future__ import annotations

import pytest
import torch

from huvr.model import HUVR, HUVRConfig

TINY = HUVRConfig(
    image_size=32, patch=8, width=48, depth=1, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_heads=3,
    decoder_hidden=96, inr_widths=(16, 16, 16), inr_frequencies=4, inr_max_frequency=8.0,
)  # fmt: skip


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "net"
    HUVR(TINY).save(folder)
    return str(folder)
