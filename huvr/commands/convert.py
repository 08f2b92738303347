"""``huvr convert``: released weights into our format, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huvr import weights


def convert(source: str, *, out: Path, to: Literal["huvr", "released"] = "huvr") -> None:
    """Write the weights of SOURCE in another format.

    Args:
        source: whatever huvr.load opens: a directory, .safetensors, .pth, .ckpt, or a Hugging Face repository "owner/name".
        out: new or empty directory to write; a name that ends in .pth, with "released", for the layout of the released trainer.
        to: "huvr" for config.json and model.safetensors of ours, "released" for those of the released code.
    """
    weights.convert(source, out, to)
    print(f"{source} → {out}")
