"""Images in order, each seen once: one that cannot be read is left out, where training would take its neighbour."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from huvr.data.loader import Batch, Loader
from huvr.data.samples import Rows


class Looks(Dataset[Batch | str]):
    """Rows in order, each as ``image``, uint8 ``(3, H, W)``, and ``row``, its number; or what is wrong with its image."""

    def __init__(self, rows: Rows, view: Callable[[Image.Image], Tensor]) -> None:
        self.rows, self.view = rows, view

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch | str:
        found = self.rows.readable(index)
        return found.skipped[0] if found.skipped else {"image": self.view(found.image), "row": index}


def readable(samples: list[Batch | str]) -> tuple[Batch, list[str]]:
    """A batch of what could be read, empty where nothing could, and what is wrong with the rest."""
    read = [sample for sample in samples if not isinstance(sample, str)]
    return default_collate(read) if read else {}, [sample for sample in samples if isinstance(sample, str)]


def looks_at(rows: Rows, view: Callable[[Image.Image], Tensor], batch_size: int, workers: int) -> Loader:
    """Batches ``{"image": uint8 (B, 3, H, W), "row": int64 (B,)}`` of the rows; one of which nothing can be read is empty."""
    return Loader(DataLoader(Looks(rows, view), batch_size, num_workers=workers, collate_fn=readable))
