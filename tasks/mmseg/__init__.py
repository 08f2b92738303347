"""Frozen encoders as backbones of mmsegmentation 1.2, for any of its heads: ``pip install 'huvr[mmseg]'``.

``custom_imports = {"imports": ["huvr.tasks.mmseg"]}`` in a config of mmsegmentation registers :class:`HUVRBackbone`, puts
:mod:`huvr.tasks.mmseg.ops` in the place of the compiled operators of mmcv where these are absent, and lets mmengine read its
own checkpoints, which newer versions of torch refuse.
"""

from __future__ import annotations

from . import checkpoints, ops
from .backbone import HUVRBackbone

ops.stand_in()
checkpoints.allow()

__all__ = ["HUVRBackbone"]
