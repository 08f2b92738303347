"""What the benchmark of a training step counts, against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import train_step
from tables import train_step_gpu
from tiny_network import TINY

from huvr.pretrain import Pretraining

TWO = 2  # FLOPs of a multiplication and an addition


def test_a_teacher_costs_what_its_layers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "SIZE", 64)
    width, depth, tokens, patches = 64, 6, 17, 16
    layer = (3 + 1 + 2 * 3) * width**2 * tokens + 2 * tokens**2 * width  # qkv, proj, MLP of three widths; scores and their use
    config = train_step.random_teacher("test_vit", tmp_path)
    assert train_step.teacher_flops(config, patch=16) == TWO * (depth * layer + 3 * 16**2 * width * patches)


def test_one_more_layer_of_the_student_costs_its_products_thrice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, the gradient of what goes in, and that of the weights; of attention, of both factors."""
    monkeypatch.setattr(train_step, "SIZE", 32)
    width, hidden, tokens = 48, 128, 17
    layer = (3 + 1) * width**2 * tokens + 3 * width * hidden * tokens + 2 * tokens**2 * width
    one, two = (train_step.student_flops(Pretraining(replace(TINY, depth=depth))) for depth in (1, 2))
    assert two - one == 3 * TWO * layer


def test_the_table_of_a_gpu_has_lines_with_and_without_a_teacher() -> None:
    every = {"images_per_second": 702.4, "utilisation": 0.141, "inr_share": 0.0824, "peak_memory_mb": 13312}
    alone = {"memory_against_bare": 1.05, "largest_batch": 688}
    _, _, *lines = train_step_gpu({"base": every | alone, "base, vit": every})
    assert lines == ["| base | 702 | 14% | 8.2% | 13.0 GB | 1.05 | 688 |", "| base, vit | 702 | 14% | 8.2% | 13.0 GB |  |  |"]
