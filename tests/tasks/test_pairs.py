"""Images with a target per pixel: three kinds of sources, batches that follow from a seed, mistakes named."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms import v2

from huvr.data import sources
from huvr.errors import HuvrError
from huvr.tasks.base import EncoderConfig, FrozenEncoderTask
from huvr.tasks.pair_sources import decode_target
from huvr.tasks.pairs import Pairs

SIZES = [(20, 24), (24, 20), (16, 30), (20, 24), (18, 18)]


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "converted")
    monkeypatch.chdir(tmp_path)


def pair(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of noise, and a 16-bit target."""
    generator = np.random.default_rng(number)
    size = SIZES[number % len(SIZES)]
    return generator.integers(0, 256, (*size, 3), np.uint8), generator.integers(0, 2**16, size, np.uint16)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(root: str, pattern: str, splits: dict[str, list[int]]) -> None:
    for split, numbers in splits.items():
        for kind, index in (("images", 0), ("depth", 1)):
            folder = Path(root, pattern.format(kind=kind, split=split))
            folder.mkdir(parents=True)
            for number in numbers:
                (folder / f"{number}.png").write_bytes(png(pair(number)[index]))


def write_packs(root: str, splits: dict[str, list[int]], column: str = "depth") -> None:
    Path(root).mkdir()
    for split, numbers in splits.items():
        images, targets = ([{"bytes": png(pair(number)[index]), "path": None} for number in numbers] for index in (0, 1))
        table = datasets.Dataset.from_dict({"image": images, column: targets, "number": numbers})
        table = table.cast_column("image", datasets.Image()).cast_column(column, datasets.Image())
        table.to_parquet(f"{root}/{split}.parquet")


@pytest.fixture
def folder() -> str:
    write_folder("pairs", "{split}/{kind}", {"train": list(range(5)), "val": [5, 6, 7]})
    return "pairs"


def opened(root: str = "pairs", **options: Any) -> Pairs:
    data = Pairs(**{"root": root, "target": "depth", "workers": 0, "batch_size": 2} | options)
    data.setup()
    return data


def epoch(loader: Any, number: int = 0) -> list[dict[str, Any]]:
    loader.sampler.set_epoch(number)
    return list(loader)


def names(batches: Any) -> list[str]:
    return [Path(name).stem for batch in batches for name in batch["name"]]


def same(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(
        one["name"] == other["name"] and torch.equal(one["image"], other["image"]) and torch.equal(one["target"], other["target"])
        for one, other in zip(first, second, strict=True)
    )


def refusal(data: Any) -> str:
    with pytest.raises(HuvrError) as error:
        data() if callable(data) else list(data)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- targets


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_numbers_come_back_as_they_were_stored() -> None:
    small, large = np.array([[0, 7, 255]], np.uint8), np.array([[0, 258, 65535]], np.uint16)
    coloured = Image.fromarray(small, "P")
    coloured.putpalette([255, 255, 255] * 256)  # all classes in one colour
    cases = [
        (encoded(Image.fromarray(small)), [0, 7, 255]),
        (encoded(coloured), [0, 7, 255]),
        (encoded(Image.fromarray(large)), [0, 258, 65535]),
        (encoded(Image.fromarray(np.array([[True, False]]))), [1, 0]),
        (encoded(Image.fromarray(large.astype(np.int32) + 2**17), "TIFF"), [2**17, 2**17 + 258, 2**17 + 65535]),
    ]
    for content, expected in cases:
        target = decode_target(content, "it")
        assert target.dtype == torch.int64
        assert target.tolist() == [expected]
    floats = decode_target(encoded(Image.fromarray(np.array([[0.25, 1e-3]], np.float32)), "TIFF"), "it")
    assert floats.dtype == torch.float32
    assert torch.equal(floats, torch.tensor([[0.25, 1e-3]]))


def test_targets_with_colours_and_broken_ones_are_named() -> None:
    coloured = encoded(Image.new("RGB", (3, 3)))
    assert refusal(lambda: decode_target(coloured, "x.png")).startswith(
        "x.png: a target of mode RGB; expected one number a pixel"
    )
    assert refusal(lambda: decode_target(b"nothing", "x.png")) == "x.png: not a readable target (unknown format)"
    assert refusal(lambda: decode_target("gone.png", "gone.png")).startswith("gone.png: not a readable target ([Errno 2]")


# ---- sources


def shown(data: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in data.rows.values():
        for index in range(len(rows)):
            image, target, _ = rows[index]
            yield image, target


@pytest.mark.parametrize("source", ["split/kind", "kind/split", "packs", "hub"])
def test_every_source_gives_the_same_pairs(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = [0, 1, 2], [3, 4]
    if source == "split/kind":
        write_folder("root", "{split}/{kind}", {"train": train, "test": held_out})
    elif source == "kind/split":
        write_folder("root", "{kind}/{split}", {"training": train, "validation": held_out})
    else:
        write_packs("root", {"train": train, "validation": held_out})
    root = "root"
    if source == "hub":
        loaded = datasets.load_dataset("parquet", data_dir="root")
        monkeypatch.setattr(sources, "load_dataset", lambda root, streaming: loaded)
        monkeypatch.setattr(sources.HfApi, "dataset_info", lambda *_, **__: None)
        root = "somebody/depths"
    found = list(shown(opened(root)))
    assert len(found) == 5
    for number, (image, target) in enumerate(found):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pair(number)[0])
        assert np.array_equal(target.numpy(), pair(number)[1])


def test_folders_of_targets_may_have_a_plural_name_and_other_suffixes() -> None:
    write_folder("pairs", "{split}/{kind}", {"train": [0], "val": [1]})
    for split in ("train", "val"):
        Path("pairs", split, "depth").rename(f"pairs/{split}/annotations")
    Image.fromarray(pair(0)[0]).save("pairs/train/images/0.jpg")
    Path("pairs/train/images/0.png").unlink()
    data = opened(target="annotation")
    assert data.rows["train"][0][2] == "pairs/train/images/0.jpg"
    assert np.array_equal(data.rows["train"][0][1].numpy(), pair(0)[1])


def test_a_part_of_a_split_is_spread_evenly_over_it(folder: str) -> None:
    data = opened(train_images=2, test_images=1)
    assert data.rows["train"].numbers.tolist() == [0, 2]
    assert names(data.test_dataloader()) == ["5"]
    assert len(opened(train_images=99).rows["train"]) == 5


# ---- batches


def test_tests_show_each_image_once_whole_with_its_own_target(folder: str) -> None:
    batches = list(opened(test_view=v2.Resize(10)).test_dataloader())
    assert names(batches) == ["5", "6", "7"]
    assert [tuple(batch["image"].shape) for batch in batches] == [(1, 3, 10, 12), (1, 3, 12, 10), (1, 3, 10, 18)]
    assert batches[0]["image"].dtype == torch.uint8
    for number, batch in zip((5, 6, 7), batches, strict=True):
        assert np.array_equal(batch["target"][0].numpy(), pair(number)[1])


def test_ranks_divide_the_tests_without_repeating_any(folder: str) -> None:
    data, found = opened(), []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        found.append(names(data.test_dataloader()))
    assert found == [["5", "7"], ["6"]]


def test_an_epoch_of_training_takes_each_image_at_most_once_in_another_order(folder: str) -> None:
    loader = opened(train_view=v2.RandomCrop(12), batch_size=2).train_dataloader()
    orders = [names(epoch(loader, number)) for number in range(6)]
    assert all(len(order) == len({*order}) == 4 for order in orders)
    assert len({*map(tuple, orders)}) > 1
    assert {*"01234"} == {name for order in orders for name in order}


def test_few_images_fill_a_batch_by_coming_twice(folder: str) -> None:
    (batch,) = epoch(opened(train_view=v2.RandomCrop(12), batch_size=7).train_dataloader())
    assert {*batch["name"]} == {f"pairs/train/images/{number}.png" for number in range(5)}


def test_batches_follow_from_the_seed_not_from_the_workers(folder: str) -> None:
    view = v2.Compose([v2.RandomCrop(12), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)])
    alone, helped, other = (
        opened(train_view=view, workers=workers, seed=seed).train_dataloader() for workers, seed in ((0, 0), (2, 0), (0, 1))
    )
    torch.rand(3)
    first, second = epoch(alone, 0), epoch(alone, 1)
    assert same(first, epoch(helped, 0))
    assert same(second, epoch(helped, 1))
    assert not same(first, second)
    assert not same(first, epoch(other, 0))


def test_images_and_targets_are_cropped_together(folder: str) -> None:
    view = v2.Compose([v2.RandomCrop(12), v2.RandomHorizontalFlip()])
    data = opened(train_view=view)
    for rows in data.rows.values():
        rows.read_target = lambda target, name: target % 256
    for batch in epoch(data.train_dataloader()):
        for image, target, name in zip(batch["image"], batch["target"], batch["name"], strict=True):
            whole, numbers = pair(int(Path(name).stem))
            places = {(int(red), int(number)) for red, number in zip(whole[..., 0].flat, (numbers % 256).flat, strict=True)}
            assert {(int(r), int(n)) for r, n in zip(image[0].flatten(), target.flatten(), strict=True)} <= places


def test_training_goes_on_in_the_middle_of_an_epoch(folder: str) -> None:
    options = {"train_view": v2.RandomCrop(12), "batch_size": 1}
    expected = epoch(opened(**options).train_dataloader(), 1)
    broken, resumed = opened(**options), opened(**options)
    loader = broken.train_dataloader()
    loader.sampler.set_epoch(1)
    assert len(list(islice(loader, 2))) == 2
    resumed.load_state_dict(broken.state_dict())
    assert same(epoch(resumed.train_dataloader(), 1), expected[2:])


def test_a_step_of_other_size_is_told(folder: str) -> None:
    broken, resumed = opened(batch_size=1), opened(batch_size=2)
    list(islice(broken.train_dataloader(), 2))
    with pytest.warns(UserWarning, match="steps of 2 images, of 1 in the checkpoint"):
        resumed.load_state_dict(broken.state_dict())


# ---- with a task


class Looked(FrozenEncoderTask):
    """Reads targets its own way and keeps the tokens of tests."""

    read_target = staticmethod(lambda target, name: target.float() / 1000)

    def test_step(self, batch: dict[str, Any], index: int) -> None:
        assert batch["target"].dtype == torch.float32
        self.tokens = self.encoder(batch["image"].float() / 255)


def test_a_task_reads_targets_and_gets_components_of_whole_training_images(quiet: Any, encoder: str, folder: str) -> None:
    task, standard = Looked(EncoderConfig(encoder, "pca2")), Looked(EncoderConfig(encoder))
    data = Pairs("pairs", "depth", test_view=v2.Resize((16, 16)), workers=0)
    quiet().test(task, datamodule=data, verbose=False)
    assert task.details["data"] == {"train": "pairs (train), 5 images", "test": "pairs (val), 3 images"}
    rows = [v2.functional.resize(image, [16, 16])[None] for image, _, _ in (data.rows["train"][index] for index in range(5))]
    train = torch.cat([standard.encoder.look(image / 255).patches[0] for image in rows]).double()
    directions = torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:2]
    last = v2.functional.resize(data.rows["test"][2][0], [16, 16])[None]
    expected = (standard.encoder.look(last / 255).patches[0].double() - train.mean(0)) @ directions.T
    found = task.tokens.patches[0].double()
    torch.testing.assert_close(found, expected * (found * expected).sum(0).sign(), rtol=5e-3, atol=5e-3)


# ---- mistakes


def test_pairs_that_cannot_be_used_are_named(folder: str) -> None:
    data, view = opened(), "pairs/val/images/6.png"
    Path("pairs/val/depth/6.png").write_bytes(png(pair(5)[1]))
    assert refusal(data.test_dataloader()) == f"{view}: the image has 24x20 pixels, its target 20x24; expected the same"
    Path("pairs/val/depth/6.png").write_bytes(b"broken")
    assert refusal(data.test_dataloader()) == "pairs/val/depth/6.png: not a readable target (unknown format)"
    Path(view).write_bytes(b"broken")
    assert refusal(data.test_dataloader()) == f"{view}: not a readable image (unknown format)"
    assert refusal(opened(workers=1).test_dataloader()) == f"{view}: not a readable image (unknown format)"
    assert refusal(epoch_of_all(opened(batch_size=5))).startswith("train_view: images of different sizes")


def epoch_of_all(data: Pairs) -> Any:
    return lambda: epoch(data.train_dataloader())


def test_rows_that_cannot_be_used_are_named() -> None:
    write_packs("packs", {"train": [0], "test": [1, 2]})
    table = datasets.Dataset.from_parquet("packs/test.parquet").cast_column("depth", datasets.Image(decode=False))
    table = table.map(lambda row, index: {"depth": {"bytes": b"broken", "path": None} if index else None}, with_indices=True)
    table.to_parquet("packs/test.parquet")
    rows = opened("packs").rows["test"]
    assert refusal(lambda: rows[0]) == "packs (test) row 0, its target: empty"
    assert refusal(lambda: rows[1]) == "packs (test) row 1, its target: not a readable target (unknown format)"


def test_sources_that_cannot_be_used_are_refused(folder: str) -> None:
    write_packs("packs", {"train": [0], "test": [1]})
    assert refusal(lambda: Pairs()).startswith("which data? --data.root with")
    assert refusal(lambda: Pairs("pairs", batch_size=0)).endswith("expected 1 or more; workers: 0 or more")
    assert refusal(lambda: opened("nowhere/at/all")).startswith("data root 'nowhere/at/all': no such file or folder; allowed: ")
    assert refusal(lambda: opened("packs", target="mask")) == (
        "data root 'packs': column 'mask' is missing (it has image, depth, number); data.target names the targets"
    )
    assert "column 'number' holds no images" in refusal(lambda: opened("packs", target="number"))
    assert refusal(lambda: opened("packs", target="image")).startswith("target 'image': that column holds the images")
    assert refusal(lambda: opened(target="mask")) == (
        "pairs/train/images: no folder pairs/train/mask or pairs/train/masks of its targets; set data.target"
    )
    assert refusal(lambda: opened(test_split="test")) == "data root 'pairs': no split 'test'; it has train, val"
    assert refusal(lambda: opened("packs/train.parquet")).endswith(
        "no held-out split (validation, val, valid, dev, test); it has train"
    )
    assert refusal(lambda: opened(test_split="train")).startswith("train_split and test_split are both 'train'")
    assert refusal(lambda: opened("pairs/train")).startswith("data root 'pairs/train': neither packs nor folders of pairs")
    Path("pairs/val/depth/9.png").write_bytes(b"")
    assert refusal(opened) == "pairs/val/depth/9.png: no file of that name in pairs/val/images (one of 1 files without a partner)"
    Path("pairs/train/depth/3.png").unlink()
    assert refusal(opened).startswith("pairs/train/images/3.png: no file of that name in pairs/train/depth")
    Path("pairs/train/depth/3.png").write_bytes(b"")
    Path("pairs/train/depth/3.tif").write_bytes(b"")
    assert refusal(opened).startswith("pairs/train/depth/3.png: another file has the same name but for the suffix")


def test_an_image_that_exif_turns_is_refused(folder: str) -> None:
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = 3
    Image.fromarray(pair(6)[0]).save("pairs/val/images/6.png", exif=tag)
    problem = "pairs/val/images/6.png: to be turned by EXIF orientation 3, and its target perhaps not: turn the pixels of both"
    assert refusal(opened().test_dataloader()) == problem


def test_the_archive_that_a_folder_came_in_is_passed_over(folder: str) -> None:
    before = names(opened().test_dataloader())
    Path("pairs/all.tar").write_bytes(b"")
    Path("pairs/notes.parquet").write_bytes(b"")
    assert names(opened().test_dataloader()) == before
