"""Images from any source, in an order that can be resumed in the middle of an epoch."""

from huvr.data.images import Images
from huvr.data.reading import list_images, read_image

__all__ = ["Images", "list_images", "read_image"]
