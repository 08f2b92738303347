"""The network: plain modules that know nothing of Lightning."""

from huvr.model.huvr import HUVR, PRESETS, HUVRConfig
from huvr.model.tokens import Tokens

__all__ = ["HUVR", "PRESETS", "HUVRConfig", "Tokens"]
