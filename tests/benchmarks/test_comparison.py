"""The comparison of hyper-networks: fair sizes, steps that fit the time, rivals, curves, and going on where it was broken off."""

from __future__ import annotations

from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypernets import cost, plot, rivals, small, steps_for
from torch import Tensor
from trainings import Crops, Finished, Precision, fit

from huvr.hypernets.coordinate_mlp import INRConfig
from huvr.hypernets.module import HyperNetwork
from huvr.hypernets.tokenizer import TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig
from huvr.hypernets.transinr import TransINR
from huvr.metrics import psnr


def pictures(count: int = 3) -> list[Tensor]:
    return [*torch.randint(256, (count, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("size", [64, 144])
def test_the_small_networks_are_of_one_size(size: int) -> None:
    parameters, numbers = {}, {}
    for name, make in small(size).items():
        net = make()
        parameters[name] = sum(p.numel() for p in net.parameters())
        with torch.no_grad():
            numbers[name] = net.encode(torch.rand(1, 3, size, size)).numbers
    assert max(parameters.values()) / min(parameters.values()) < 1.15
    for count in numbers.values():
        assert abs(count - 3 * size**2 / 12) < 0.2 * 3 * size**2 / 12


def test_crops_are_the_same_for_every_training() -> None:
    first, second = ([next(each)["image"] for _ in range(5)] for each in (iter(Crops(pictures(), 16, 7)) for _ in range(2)))
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first[0], next(iter(Crops(pictures(), 16, 8)))["image"])
    assert first[0].shape == (3, 16, 16)


def tiny() -> HyperNetwork:
    torch.manual_seed(0)
    net = TransINR(TokenizerConfig(16, 8, 0), TransformerConfig(16, 1, 2, 8, 32), INRConfig(2, 8, 2, 4.0), groups=4)
    return HyperNetwork(net, lr=1e-2, schedule="cosine", warmup=0.1, pictures_every=0)


def test_a_curve_ends_with_the_measure_of_the_trained_network() -> None:
    test, module = torch.rand(5, 3, 16, 16), tiny()
    curve = fit(module, Crops(pictures(), 16, 0), test, steps=7, batch=2, points=3)
    assert [step for step, _ in curve] == [2, 4, 6, 7]
    assert not module.training
    with torch.no_grad():
        assert curve[-1][1] == pytest.approx(psnr(module.net.reconstruct(test), test).mean().item(), abs=1e-3)


def test_the_same_training_gives_the_same_curve() -> None:
    test = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    once, again = (fit(tiny(), Crops(pictures(), 16, 0), test, steps=4, batch=2, points=2) for _ in range(2))
    assert once == again
    assert len(once) == 2


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_products_have_the_precision_asked_for(precision: Precision, dtype: torch.dtype) -> None:
    module, seen = tiny(), set[torch.dtype]()
    for part in module.net.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda part, inputs, output: seen.add(output.dtype))
    fit(module, Crops(pictures(), 16, 0), torch.rand(2, 3, 16, 16), steps=1, batch=2, precision=precision)
    assert seen == {dtype}


def test_results_are_kept_until_the_record_is_written(tmp_path: Path) -> None:
    finished = Finished(tmp_path, "some", {"steps": 3, "sizes": (1, 2)})
    assert finished("first", lambda: {"psnr": 20.0}) == {"psnr": 20.0}
    later = Finished(tmp_path, "some", {"steps": 3, "sizes": (1, 2)})
    assert later("first", lambda: pytest.fail("made twice")) == {"psnr": 20.0}
    assert later.begun_at == finished.begun_at
    with pytest.raises(SystemExit, match=r"some\.json\.partial was begun with .*'steps': 3"):
        Finished(tmp_path, "some", {"steps": 4, "sizes": (1, 2)})
    later.close()
    assert not [*tmp_path.iterdir()]


def test_steps_fill_the_time() -> None:
    # 10 and 5 images a second: 0.3 s an image of both; 60 s are 200 images, 11 measurements of 6 at a third of that are 22
    # of them, and 178 = 1 image × 1.75 × 101.7 steps, in multiples of 32
    assert steps_for(1, [10.0, 5.0], batch=1, rates=3, measured=6) == 96
    assert steps_for(0.001, [1.0], batch=16, rates=3, measured=48) == 32


def test_rivals_have_the_bytes_of_the_network() -> None:
    smooth = [torch.arange(20.0)[None, :, None].add(torch.arange(24.0)).expand(3, -1, -1).byte() * 5 for _ in range(2)]
    test = smooth[0][None, :, :16, :16].float() / 255
    found = rivals(smooth, test, patch=8, numbers=4 * 3)
    assert found["patch_pca"] > 40  # a plane has three components a patch and no more
    assert found["jpeg_bytes"] > 24  # not even its header fits
    assert rivals(smooth, test, patch=8, numbers=700)["jpeg_bytes"] <= 1400


@pytest.mark.parametrize("precision", get_args(Precision))
def test_cost_counts_parameters_and_numbers(precision: Precision) -> None:
    found = cost("GINR", "small", 16, batch=2, precision=precision, optimizer_name="muon", threads=1, repeats=1)
    assert found["numbers"] == 64 == 16**2 // 4
    assert found["parameters"] == sum(p.numel() for p in small(16)["GINR"]().parameters())
    assert found["images_per_second"] > 0
    assert found["peak_memory_mb"] >= 0


def test_the_plot_names_every_curve_and_has_a_linear_axis() -> None:
    rows = {
        name: {"curve": [[8, 20.0 + number], [16, 22.0], [24, 25.0]], "rivals": {"patch_pca": 30.0, "jpeg": 28.0}}
        for number, name in enumerate(("GINR", "HUVR (ours)"))
    }
    root = ElementTree.fromstring(plot(rows, 16))
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {
        "GINR",
        "HUVR (ours)",
        "per-patch PCA, size of HUVR (ours)",
        "JPEG, size of HUVR (ours)",
        "steps of 16 images",
    } <= texts
    ticks = sorted(int(text) for text in texts if text and text.isdigit())[-6:]
    assert np.ptp(np.diff([tick for tick in ticks if 8 <= tick <= 24])) == 0


def test_what_is_larger_than_the_image_has_no_rivals() -> None:
    assert rivals(pictures(), torch.rand(1, 3, 16, 16), patch=8, numbers=3 * 16**2) == {}
