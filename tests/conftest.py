"""What the tests of verbs and of tasks begin with."""

from __future__ import annotations

import pytest
import torch
from tiny_network import TINY

from huvr.model import HUVR


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "net"
    HUVR(TINY).save(folder)
    return str(folder)
