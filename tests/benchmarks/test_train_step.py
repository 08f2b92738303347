"""What the benchmark of a training step counts, against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import train_step
from tables import train_step_gpu
from tiny_network import TINY
from torch.autograd import DeviceType

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


def test_the_table_has_no_column_of_what_no_line_measured() -> None:
    row = {"images_per_second": 702.4, "utilisation": 0.141, "inr_share": 0.0824, "peak_memory_mb": 13312}
    header, _, line = train_step_gpu({"base": row | {"memory_against_bare": 1.05}})
    assert header.endswith("| memory | … bare network = 1 |")
    assert line == "| base | 702 | 14% | 8.2% | 13.0 GB | 1.05 |"


@pytest.mark.parametrize(("most", "guess"), [(688, 600), (688, 1000), (300, 300), (8, 64)])
def test_the_largest_batch_is_found_to_an_eighth(most: int, guess: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(module: None, batch: int, steps: int, precision: str) -> None:
        if batch > most:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(train_step, "measure", measure)
    found = train_step.largest_batch(lambda: None, guess, "bf16")
    assert found % 8 == 0
    assert max(8, most * 7 / 8 - 8) <= found <= most


def test_shares_of_the_time_of_a_gpu() -> None:
    """Two kernels of 30 with a gap of 20 between, then one of 20 of which half runs beside the second."""

    def event(name: str, start: float, end: float, kind: DeviceType = DeviceType.CUDA) -> SimpleNamespace:
        time_range = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, device_type=kind, time_range=time_range)

    events = [
        event("aten::mm", 0, 500, DeviceType.CPU),
        event("Optimizer.step#AdamW.step", 100, 500),
        event("nvjet_sm90_tst_256x128", 100, 130),
        event("triton_poi_fused_silu", 150, 180),
        event("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 170, 190),
        event("void at::native::elementwise_kernel", 190, 200),
    ]
    found = train_step.shares(SimpleNamespace(events=lambda: events))  # type: ignore[arg-type]
    assert found == {
        "attention": 0.2, "fused by compile": 0.3, "convolutions": 0.0, "products": 0.3, "other kernels": 0.1, "idle": 0.2,
    }  # fmt: skip
