"""What the numbers in a segmentation mask mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from huvr.errors import HuvrError

NO_LABEL = -1  # of a pixel that neither teaches nor counts


@dataclass(frozen=True)
class Labels:
    """Masks as they are stored to labels 0 to ``classes - 1`` and :data:`NO_LABEL`.

    Attributes:
        classes: how many.
        ignore: the stored number of pixels that do not count.
        zero_ignored: 0 does not count either, and the classes are stored as 1 to ``classes`` (ADE20K).
    """

    classes: int
    ignore: int
    zero_ignored: bool

    def __call__(self, stored: Tensor, name: str) -> Tensor:
        """A mask ``(H, W)`` of whole numbers to labels int64 ``(H, W)``.

        Raises:
            HuvrError: naming a number that is no class, and where it is.
        """
        first = int(self.zero_ignored)
        left_out = (stored == self.ignore) | ((stored == 0) & self.zero_ignored)
        wrong = ((stored < first) | (stored >= first + self.classes)) & ~left_out
        if stored.is_floating_point() or wrong.any():
            found = "floats" if stored.is_floating_point() else f"the value {int(stored[wrong][0])}"
            allowed = f"{first} to {first + self.classes - 1}, and {'0 and ' * first}{self.ignore} for pixels that do not count"
            raise HuvrError(f"{name}: a mask with {found}; expected {allowed} (see model.classes, ignore and zero_label)")
        return torch.where(left_out, NO_LABEL, stored - first)
