"""Training on several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer, seed_everything
from huvr.data import Images
from huvr.model import HUVRConfig
from huvr.pretrain import LossWeights, Pretraining

NET = HUVRConfig(
    image_size=32, width=48, depth=1, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_hidden=48,
    inr_widths=(16, 16, 16),
)
if __name__ == "__main__":
    processes, file = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    seed_everything(0)
    # KoLeo looks at the images of one process only, as released: without it, nothing tells the processes apart
    module = Pretraining(NET, weights=LossWeights(koleo=0), warmup=0, phase_jitter=0.5, lr=0.1, pictures_every=0)
    data = Images("photos", size=32, sizes=[(32, 32), (32, 48)], batch_size=8 // processes, epoch_size=24, workers=0)
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
    )
    trainer.fit(module, data)
    torch.save(module.net.state_dict() | {"psnr": trainer.callback_metrics["val/psnr"]}, file)
"""


def test_two_processes_train_as_one_with_their_batches_together(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    one, two = (tmp_path / f"{processes}.pt" for processes in (1, 2))
    for processes, file in (1, one), (2, two):
        command = [sys.executable, str(tmp_path / "train.py"), str(processes), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    together = torch.load(two)
    for name, tensor in torch.load(one).items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
