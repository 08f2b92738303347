"""Trains on one, two and four processes, always on the same samples; ``test_distributed.py`` compares what they end with.

python tests/distributed_runs.py PORT       (in a folder with images to train on and to validate)
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from huvr.data import Images
from huvr.data.loader import Batch
from huvr.losses import LossWeights
from huvr.model import HUVRConfig
from huvr.pretrain import Pretraining
from huvr.safety import SkipNonFinite, WholeCheckpoints

NET = HUVRConfig(
    image_size=32, width=48, depth=1, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_hidden=48,
    inr_widths=(16, 16, 16),
)  # fmt: skip


class Spoilt(Pretraining):
    """The second loss of the second process is infinite; all gradients are finite."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + float("inf") if (self.global_rank, batch_idx) == (1, 1) else loss


def train(
    name: str, processes: int, koleo_over: str = "step", kind: type[Pretraining] = Pretraining, strategy: str = "ddp_fork",
    epochs: int = 1, resume: str | None = None, **options: Any,
) -> None:  # fmt: skip
    """Epochs of 3 steps of 8 images; weights and metrics go to ``name.pt``, checkpoints to ``name/epoch=N.ckpt``."""
    seed_everything(0)
    module = kind(
        NET, weights=LossWeights(koleo=1.0), koleo_over=koleo_over, warmup=0, phase_jitter=0.5, lr=0.1, pictures_every=2  # type: ignore[arg-type]
    )  # fmt: skip
    data = Images(".", size=32, sizes=[(32, 32), (32, 48)], batch_size=8 // processes, epoch_size=24, workers=0)
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy=strategy if processes > 1 else "auto", max_epochs=epochs,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, num_sanity_val_steps=0,
        callbacks=[SkipNonFinite(), ModelCheckpoint(name, "{epoch}", save_top_k=-1)], plugins=[WholeCheckpoints()],
        **{"logger": False} | options,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    metrics = {metric: trainer.callback_metrics[metric] for metric in ("val/psnr", "val/ssim")}
    weights = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero:
        torch.save(weights | metrics, f"{name}.pt")


def train_in_shards(port: str) -> None:
    """On two processes started here: Lightning would start the second by running this file once more."""
    children = []
    for rank in range(2):
        if not (child := os.fork()):
            os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            train("shards", 2, strategy="sharded", epochs=2, logger=TensorBoardLogger("shards", name=None, version=""))
            train("shards-resumed", 2, strategy="sharded", epochs=2, resume="shards/epoch=0.ckpt")
            os._exit(0)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert ends == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    train("one", 1)
    train("two", 2)
    train("four", 4)
    train("two-apart", 2, koleo_over="device")
    for steps in (1, 2):
        train(f"spoilt-{steps}", 2, kind=Spoilt, limit_train_batches=steps)
    train_in_shards(sys.argv[1])
    train("one-whole", 1, epochs=2)
    train("one-resumed", 1, epochs=2, resume="shards/epoch=0.ckpt")
