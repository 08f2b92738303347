"""Images from any source, in an order that can be resumed in the middle of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huvr.data.reading import list_images, read_image

if TYPE_CHECKING:
    from huvr.data.images import Images

__all__ = ["Images", "list_images", "read_image"]


def __getattr__(name: str) -> Any:
    """``Images`` at first use: Lightning and datasets take seconds to import, and drawing a photograph needs neither."""
    if name != "Images":
        raise AttributeError(f"module 'huvr.data' has no attribute {name!r}")
    from huvr.data.images import Images

    return Images
