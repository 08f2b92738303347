"""huvr: one vision encoder for seeing and drawing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huvr.model import HUVR, PRESETS, HUVRConfig, Tokens
    from huvr.weights import load

    __version__: str

__all__ = ["HUVR", "PRESETS", "HUVRConfig", "Tokens", "__version__", "load"]

# Imported at first use: torch takes seconds, `huvr --version` must not.
_HOMES = {"load": "huvr.weights", **dict.fromkeys(("HUVR", "PRESETS", "HUVRConfig", "Tokens"), "huvr.model")}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("huvr")
    if name not in _HOMES:
        raise AttributeError(f"module 'huvr' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
