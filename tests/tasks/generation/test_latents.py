"""Latents: what the encoder says of each picture and its mirror image, computed once, normalised and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

import huvr
from huvr.data import read_image
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError
from huvr.tasks.base import FrozenEncoder
from huvr.tasks.generation import shards
from huvr.tasks.generation.space import LatentSpace, Statistics

Learn = Callable[..., Any]


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "converted")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the sizes of the batches that encoders look at."""
    seen: list[int] = []
    look = FrozenEncoder.look

    def counted(self: FrozenEncoder, images: Tensor) -> Any:
        seen.append(len(images))
        return look(self, images)

    monkeypatch.setattr(FrozenEncoder, "look", counted)
    return seen


def tintoks(encoder: str, path: Path, mirrored: bool) -> Tensor:
    """Of one picture, by the public API."""
    model = huvr.load(encoder)
    image = centre_crop(32)(read_image(path))[None] / 255
    with torch.no_grad():
        return model.compress(model.encode(image.flip(-1) if mirrored else image)).sequence[0]


def test_the_cache_holds_what_the_encoder_says_of_both_views(learn: Learn, pictures: Path, encoder: str) -> None:
    _, data = learn(pictures)
    assert len(data.shards) == 18
    for number, path in enumerate(sorted((pictures / "train").rglob("*.png"))):
        for mirrored in (False, True):
            found, label = data.shards.read(number, mirrored)
            assert torch.allclose(found, tintoks(encoder, path, mirrored), atol=2e-3)
            assert label == number // 6
    assert data.space.classes == ["blue", "green", "red"]
    assert data.space.grid == (4, 4)


def test_latents_have_mean_zero_and_deviation_one_and_come_back(learn: Learn, pictures: Path) -> None:
    _, data = learn(pictures)
    sequences = torch.cat([*data.shards.pieces()])
    assert len(sequences) == 36 == data.space.statistics.count
    latents = data.space.normalise(sequences)
    for part in (latents[:, 0], latents[:, 1:].flatten(0, 1)):
        assert torch.allclose(part.mean(0), torch.zeros(8), atol=1e-3)
        assert torch.allclose(part.std(0, correction=0), torch.ones(8), atol=1e-3)
    assert torch.allclose(data.space.denormalise(latents).sequence, sequences, atol=1e-5)


def test_statistics_against_torch() -> None:
    sequences = torch.randn(50, 5, 3) * torch.tensor([1.0, 5.0, 0.0]) + 7
    found = Statistics.of(sequences.split(8))
    assert torch.allclose(found.cls_mean, sequences[:, 0].mean(0), atol=1e-5)
    deviation = sequences[:, 1:].flatten(0, 1).std(0, correction=0)
    assert torch.allclose(found.patch_std[:2], deviation[:2], rtol=1e-4)
    assert found.patch_std[2] == pytest.approx(1e-3)  # a constant channel does not become noise
    again = Statistics.from_plain(json.loads(json.dumps(found.plain())))
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(vars(again)[name])) for name, value in vars(found).items())


def test_without_global_token_its_mean_takes_its_place() -> None:
    statistics = Statistics(torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.5]), 9)
    space = LatentSpace("net", "", (1, 2), [], statistics, global_token=False)
    latents = space.normalise(torch.tensor([[[100.0], [1.5], [0.0]]]))
    assert latents.flatten().tolist() == [1, -2]
    assert space.shape == (2, 1)
    assert space.denormalise(latents).sequence.flatten().tolist() == [3, 1.5, 0]


def test_training_takes_latents_from_the_disk_and_no_encoder(learn: Learn, pictures: Path, looks: list[int]) -> None:
    learn(pictures, data={"encode_batch": 5})
    assert looks == [5, 5, 5, 5, 5, 5, 3, 3]
    looks.clear()
    learn(pictures, steps=6)
    assert looks == []


def test_broken_off_work_goes_on_and_torn_shards_are_made_again(
    learn: Learn, pictures: Path, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "IMAGES", 8)
    _, data = learn(pictures)
    whole = torch.cat([*data.shards.pieces()])
    files = sorted(path for path in Path("latents").glob("*.npy") if "labels" not in path.name)
    assert len(files) == 3
    looks.clear()
    files[0].write_bytes(files[0].read_bytes()[:-64])  # cut off
    for path in Path("latents").glob("*.statistics.json"):
        path.write_text("{")
    with pytest.warns(UserWarning, match=rf"{files[0]}: latents cut off"):
        _, data = learn(pictures)
    assert sum(looks) in (2 * 8, 2 * 2)  # one shard, plain and mirrored
    assert torch.equal(torch.cat([*data.shards.pieces()]), whole)


def test_other_images_sizes_and_weights_are_other_latents(learn: Learn, pictures: Path, encoder: str, looks: list[int]) -> None:
    learn(pictures)
    for change in ({"images": 12}, {"size": 40}):
        looks.clear()
        learn(pictures, data=change)
        assert looks
    changed = Path("changed")
    shutil.copytree(encoder, changed)
    model = huvr.load(changed)
    with torch.no_grad():
        model.bottleneck.down[1].bias += 1
    model.save(changed)
    looks.clear()
    learn(pictures, model={"encoder": str(changed)})
    assert looks


def test_images_without_labels_make_an_unconditional_generator(learn: Learn, pictures: Path) -> None:
    flat = Path("flat")
    flat.mkdir()
    for number, path in enumerate(sorted((pictures / "train").rglob("*.png"))):
        shutil.copy(path, flat / f"{number:02d}.png")
    with pytest.warns(UserWarning, match="no labels, so what is learned are pictures of no class in particular"):
        module, data = learn(flat)
    assert data.space.classes == []
    assert module.net.embed_label is None


def test_corrupt_images_are_left_out(learn: Learn, pictures: Path) -> None:
    (pictures / "train" / "blue" / "0.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="image skipped, 1 so far: .*0.png"):
        _, data = learn(pictures)
    assert len(data.shards) == 17
    assert data.shards.read(4, False)[1] == 0
    assert data.shards.read(5, False)[1] == 1


def test_online_latents_are_those_of_random_crops(learn: Learn, pictures: Path, encoder: str, looks: list[int]) -> None:
    _, data = learn(pictures)
    looks.clear()
    _, data = learn(pictures, data={"online": True, "scale": (1.0, 1.0)})
    assert looks == [4, 4]
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    batch = data.on_after_batch_transfer({"image": image, "label": torch.tensor([0, 1])}, 0)
    model = huvr.load(encoder)
    with torch.no_grad():
        expected = data.space.normalise(model.compress(model.encode(image / 255)).sequence)
    assert torch.allclose(batch["latents"], expected, atol=5e-2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": "dev"}, r"no split 'dev'; it has train, val"),
        ({"size": 36}, "size 36: expected a multiple of the encoder's patch of 8 pixels"),
        ({"batch_size": 19}, r"batch_size 19 on 1 device\(s\): expected at most 18, for 18 images"),
        ({"batch_size": 0}, "expected 1 or more"),
        ({"root": ""}, "which data?"),
        ({"scale": (0.9, 0.1)}, "scale"),
    ],
)
def test_bad_input(learn: Learn, pictures: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        learn(pictures, data=data)
