"""Heads of distillation that begin with least squares, against numpy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from timm import create_model
from tiny_network import TINY
from torch.utils.data import DataLoader

from huvr.pretrain import RIDGE, Pretraining
from huvr.teacher import Teacher, TeacherConfig


@pytest.fixture
def teacher(tmp_path: Path) -> TeacherConfig:
    torch.manual_seed(0)
    network = create_model("test_vit", num_classes=0, dynamic_img_size=True)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    return TeacherConfig("test_vit", str(tmp_path / "teacher.safetensors"))


def test_solved_heads_are_ridge_regressions_on_all_tokens_of_the_first_batch(tmp_path: Path, teacher: TeacherConfig) -> None:
    torch.manual_seed(1)
    module = Pretraining(TINY, [teacher], lr=1e-12, warmup=0.0, weight_decay=0.0, pictures_every=0, solved_heads=True)
    images = torch.rand(4, 3, 32, 32)
    trainer = Trainer(default_root_dir=tmp_path, max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, DataLoader([{"image": image} for image in images], batch_size=4))  # type: ignore[arg-type]
    with torch.no_grad():
        encoded = module.net.encode(images)
        _, taps = module.net.decoder(module.net.bottleneck.expand(module.net.compress(encoded)), taps=(1,))
        wanted = Teacher(teacher)(images, encoded.grid).sequence.flatten(0, 1).numpy().astype(np.float64)
    for place, tokens in (("encoder_cls", encoded), ("encoder_patches", encoded), ("decoder_cls", taps[1])):
        x = tokens.sequence.flatten(0, 1).numpy().astype(np.float64)
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)  # the LayerNorm of a new head
        x = np.concatenate([x, np.ones((len(x), 1))], 1)
        ridge = np.sqrt(RIDGE * np.square(x).sum(0).mean())
        augmented = (
            np.concatenate([x, ridge * np.eye(x.shape[1])]),
            np.concatenate([wanted, np.zeros((x.shape[1], wanted.shape[1]))]),
        )
        solution, *_ = np.linalg.lstsq(*augmented, rcond=None)
        head = module.net.distill[place][1]
        np.testing.assert_allclose(head.weight.detach().numpy(), solution[:-1].T, atol=1e-4)
        np.testing.assert_allclose(head.bias.detach().numpy(), solution[-1], atol=1e-4)
