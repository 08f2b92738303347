"""Weights of other people's networks that we only look through."""

from __future__ import annotations

from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor

from huvr.errors import HuvrError


def read_tensors(file: str, purpose: str) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file in fp32; nothing else in it is ever unpickled.

    Raises:
        HuvrError: naming ``purpose``, when there is no such file or it holds no tensors.
    """
    if not Path(file).is_file():
        raise HuvrError(f"{purpose}: no such file: {file}")
    try:
        return {name: tensor.float() for name, tensor in load_state_dict(file).items()}
    except Exception as error:  # safetensors, pickle and torch each have their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise HuvrError(f"{purpose}: {file} holds no tensors in safetensors or PyTorch format ({reason[0]})") from None
