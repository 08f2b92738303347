"""The other hyper-networks as frozen encoders: their own tokens through the tasks that HUVR's go through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hypernets import pictures, run_of, tiny

from huvr.cli import main
from huvr.errors import HuvrError
from huvr.hypernets.lift import LIFT, LIFTConfig
from huvr.hypernets.lift_images import LIFTImages
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.depth import Depth
from huvr.tasks.linear_heads import Feature
from huvr.tasks.segmentation import Segmentation

KINDS = {"TransINR": 32, "GINR": 32, "ANR": 32, "MAE": 32, "LIFT": 6}  # numbers per token


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: run_of(tiny(name), folder / name) for name in (*KINDS, "PatchwiseHUVR")}


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_standard_tokens_are_those_of_the_network(name: str, runs: dict[str, str]) -> None:
    encoder, expected = FrozenEncoder(EncoderConfig(runs[name])), tiny(name).eval().tokens(pictures())
    found = encoder.look(pictures())
    assert (found.grid, encoder.dim, found.dim) == (expected.grid, KINDS[name], KINDS[name])
    torch.testing.assert_close(found.sequence, expected.sequence)
    assert torch.equal(encoder(pictures()).sequence, found.sequence.half().float())
    assert encoder.stored_bytes(found) == 2 * KINDS[name] * (1 + expected.grid[0] * expected.grid[1])
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())


@torch.no_grad()
def test_a_run_of_huvr_among_them_has_all_its_tokens(runs: dict[str, str]) -> None:
    net = tiny("PatchwiseHUVR").eval()
    assert isinstance(net, PatchwiseHUVR)
    standard, tintoks = net.net.encode(pictures()), net.net.compress(net.net.encode(pictures()))
    for kind, expected in (("standard", standard), ("tintok", tintoks), ("decoder", net.net.expand(tintoks))):
        found = FrozenEncoder(EncoderConfig(runs["PatchwiseHUVR"], kind)).look(pictures())
        torch.testing.assert_close(found.sequence, expected.sequence)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_principal_components_of_their_tokens(name: str, runs: dict[str, str]) -> None:
    encoder = FrozenEncoder(EncoderConfig(runs[name], "pca3"))
    looks = encoder.look(torch.rand(6, 3, 16, 16))
    encoder.fit([looks])
    flat = looks.patches.flatten(0, 1)
    kept = encoder.project(looks).patches.flatten(0, 1)
    variances = torch.linalg.svdvals((flat - flat.mean(0)).double())[:3] ** 2
    torch.testing.assert_close(kept.double().square().sum(0), variances, rtol=1e-3, atol=1e-6)
    with pytest.raises(HuvrError, match=f"tokens pca40: the standard tokens have {KINDS[name]} numbers"):
        FrozenEncoder(EncoderConfig(runs[name], "pca40"))


def test_the_fingerprint_is_of_weights_shape_and_kind(runs: dict[str, str], tmp_path: Path) -> None:
    def fingerprint(source: str) -> str:
        return FrozenEncoder(EncoderConfig(source)).fingerprint

    changed = tiny("TransINR")
    changed.blocks[0].mlp.fc1.bias.data[3] += 1e-3
    deeper = tiny("LIFT").lift
    longer = LIFT(LIFTConfig(**vars(deeper.config) | {"inner_steps": 3}))  # finds other latents with the same weights
    longer.load_state_dict(deeper.state_dict())
    different = [*runs.values(), run_of(changed, tmp_path / "changed"), run_of(LIFTImages(longer, (16, 16)), tmp_path / "longer")]
    assert len({fingerprint(source) for source in different}) == len(different)
    for name in KINDS:
        assert fingerprint(run_of(tiny(name), tmp_path / name)) == fingerprint(runs[name])


@pytest.mark.parametrize("name", KINDS)
def test_nearest_neighbours_from_the_command_line(name: str, runs: dict[str, str], pictures: Path) -> None:
    options = ["--data.resize=34", "--data.crop=32", "--data.workers=0", "--model.k=[3]", "--run=there"]
    assert main(["probe", "--task", "knn", "--encoder", runs[name], "--data.root", "pictures", *options]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert record["encoder"] == runs[name]
    patches = {"MAE": 8 * 8, "LIFT": 2 * 2}.get(name, 6 * 6)  # (32 + 2) // 5
    assert record["bytes_per_image"] == 2 * KINDS[name] * (1 + patches)
    assert record["metrics"]["top1_k3"] > 50  # the classes are colours


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_dense_tasks_and_linear_heads(name: str, runs: dict[str, str]) -> None:
    images = torch.rand(2, 3, 18, 22)
    segmentation = Segmentation(EncoderConfig(runs[name]), classes=4, window=16, stride=8).eval()
    assert segmentation(images).shape == (2, 4, 18, 22)
    assert Depth(EncoderConfig(runs[name])).eval()(images, (20, 30)).shape == (2, 20, 30)
    assert Feature(FrozenEncoder(EncoderConfig(runs[name])), 1, True)(images).shape == (2, 2 * KINDS[name])


@torch.no_grad()
def test_mae_is_given_whole_patches_and_maps_are_cut_to_the_image(runs: dict[str, str]) -> None:
    images = torch.rand(1, 3, 15, 18)
    padded = torch.nn.functional.pad(images, (0, 2, 0, 1), mode="replicate")
    found = FrozenEncoder(EncoderConfig(runs["MAE"])).look(images)
    torch.testing.assert_close(found.sequence, tiny("MAE").eval().tokens(padded).sequence)
    assert found.grid == (4, 5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("TransINR", {"tokens": "tintok"}, "tokens tintok: .*TransINR is of TransINR, which has only standard and pca<d>"),
        ("LIFT", {"tokens": "decoder"}, "tokens decoder: .* is of LIFTImages, which has only standard and pca<d>"),
        ("GINR", {"layer": -1}, "layer -1: .* is of GINR, seen after its last layer alone; leave it out"),
        ("ANR", {"mean": (0.5, 0.5, 0.5)}, "weights, mean, std and arguments belong to timm:NAME"),
    ],
)
def test_what_they_have_not_is_refused(name: str, options: dict[str, Any], message: str, runs: dict[str, str]) -> None:
    with pytest.raises(HuvrError, match=message) as error:
        FrozenEncoder(EncoderConfig(runs[name], **options))
    assert "\n" not in str(error.value)


def test_sizes_that_they_cannot_take(runs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(HuvrError, match="images of 4x16 pixels are smaller than a patch of 5"):
        FrozenEncoder(EncoderConfig(runs["ANR"])).look(torch.rand(1, 3, 4, 16))
    with pytest.raises(HuvrError, match="signals of 15x16: each side must be a multiple of the 2 cells along it"):
        FrozenEncoder(EncoderConfig(runs["LIFT"])).look(torch.rand(1, 3, 15, 16))
    with pytest.raises(HuvrError, match=r"blocks 2: only standard cls tokens of a ViT"):
        Feature(FrozenEncoder(EncoderConfig(runs["MAE"])), 2, True)
    volumes = LIFTConfig(dims=3, channels=1, cells=2, latents=((1, 4), (2, 4)), width=8, depth=2)
    torch.save({"lift_config": vars(volumes), "state_dict": {}}, tmp_path / "damaged.ckpt")
    with pytest.raises(HuvrError, match=r"damaged.ckpt: tensors are missing"):
        FrozenEncoder(EncoderConfig(str(tmp_path / "damaged.ckpt")))
    state = {f"net.{key}": tensor for key, tensor in LIFT(volumes).state_dict().items()}
    torch.save({"lift_config": vars(volumes), "state_dict": state}, tmp_path / "volumes.ckpt")
    with pytest.raises(HuvrError, match="LIFT of 3 dimensions and 1 channels paints no images"):
        FrozenEncoder(EncoderConfig(str(tmp_path / "volumes.ckpt")))
