"""Features that are known beforehand, and the classes of the labelled pictures."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.cache import Entry
from huvr.tasks.features import FeatureSplit

COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


class Known(LightningDataModule):
    """Features as given, in place of those of images."""

    def __init__(self, encoder: str, train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        frozen = FrozenEncoder(EncoderConfig(encoder))
        classes = [str(number) for number in range(int(train[1].max()) + 1)]
        self.train, self.test = (
            FeatureSplit(Entry(features.half().numpy(), labels.numpy()), classes, frozen) for features, labels in (train, test)
        )

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([self.train], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([self.test], batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader
