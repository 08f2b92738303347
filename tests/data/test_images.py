"""The data module: from a source to batches, whatever the source, the workers and the place to go on from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from known_images import numbers, write_folder, write_pack, write_tar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from huvr.data import Images, stream
from huvr.data.loader import Echo
from huvr.errors import HuvrError
from huvr.sharding import Sharded

Batches = list[dict[str, Tensor]]
SHAPES = [(16, 16), (8, 24)]


def images(root: Path | str, **options: Any) -> Images:
    data = Images(str(root), **({"size": 16, "batch_size": 2, "workers": 0} | options))
    data.setup()
    return data


def epoch(data: Images, number: int = 0) -> Batches:
    """As Lightning goes about it: ``set_epoch`` comes after ``iter``."""
    loader = data.train_dataloader()
    return epoch_of(loader, number)


def epoch_of(loader: Any, number: int) -> Batches:
    batches = iter(loader)
    loader.sampler.set_epoch(number)
    return list(batches)


def equal(first: Batches, second: Batches) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one["image"], other["image"]) for one, other in zip(first, second, strict=True)
    )


def labels(batches: Iterable[dict[str, Tensor]]) -> list[int]:
    return [int(label) for batch in batches for label in batch["label"]]


def rank(number: int, world: int) -> Any:
    return SimpleNamespace(global_rank=number, world_size=world, accumulate_grad_batches=1)


def test_a_folder_without_splits_is_divided_once_for_all_seeds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(20))
    sides = [
        (numbers(data.val_dataloader()), numbers(epoch(data))) for data in (images(folder, held_out=0.2, seed=s) for s in (0, 1))
    ]
    (held_out, train), (held_out_again, train_again) = sides
    assert len(held_out) == 4
    assert held_out == held_out_again == sorted(held_out)
    assert sorted([*held_out, *train]) == list(range(20))
    assert train != train_again
    assert sorted(train) == sorted(train_again)


def test_batches_are_uint8_pictures_with_the_labels_of_their_folders(tmp_path: Path) -> None:
    for name, pictures in {"train/b": range(4), "train/a": range(4, 8), "val/a": [8]}.items():
        write_folder(tmp_path / name, pictures)
    data = images(tmp_path, sizes=[(8, 24)], batch_size=4)
    batches = epoch(data)
    assert [batch["image"].shape for batch in batches] == [(4, 3, 8, 24)] * 2
    assert {batch["image"].dtype for batch in batches} == {torch.uint8}
    assert {batch["label"].dtype for batch in batches} == {torch.int64}
    assert labels(batches) == [int(number < 4) for number in numbers(batches)]
    (held_out,) = data.val_dataloader()
    assert (held_out["image"].shape, numbers([held_out]), labels([held_out])) == ((1, 3, 16, 16), [8], [0])


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_shards_give_every_image_once_with_its_label(shards: Path, streaming: bool) -> None:
    data = images(shards, streaming=streaming, epoch_size=16)
    batches = epoch(data)
    assert sorted(numbers(batches)) == list(range(16))
    assert labels(batches) == numbers(batches)
    assert numbers(batches) != numbers(epoch_of(data.train_dataloader(), 1))
    assert numbers(data.val_dataloader()) == [100, 101, 102]


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_shards_give_every_image_once_with_its_label(tmp_path: Path, streaming: bool) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"train-{shard:05}.tar", range(4 * shard, 4 * shard + 4))
    write_tar(tmp_path / "val-00000.tar", range(100, 102))
    data = images(tmp_path, streaming=streaming, epoch_size=8)
    batches = epoch(data)
    assert sorted(numbers(batches)) == list(range(8))
    assert labels(batches) == numbers(batches)
    assert numbers(data.val_dataloader()) == [100, 101]


def test_a_webdataset_shard_that_is_cut_off_stops_the_stream_in_one_line(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"train-{shard}.tar", range(8))
    data = images(tmp_path, streaming=True, held_out=0, epoch_size=16)
    os.truncate(tmp_path / "train-1.tar", 5000)  # in the midst of it
    with pytest.raises(HuvrError, match=rf"^{tmp_path}: a shard of this stream cannot be read \(.*\)$"):
        epoch(data)


def test_other_images_shards_and_workers_are_told_when_training_goes_on(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(8))
    for number in range(3):
        write_pack(tmp_path / "shards" / f"{number}.parquet", range(4 * number, 4 * number + 4))
    photos, stream = {"root": folder}, {"root": tmp_path / "shards", "streaming": True, "held_out": 0, "epoch_size": 8}
    begun = []
    for options in (photos, stream | {"workers": 2}):
        begun.append(images(**options))  # type: ignore[arg-type]
        begun[-1].train_dataloader()
    write_folder(folder, [9])
    with pytest.warns(UserWarning, match="9 images, 8 in the checkpoint: .* and where a share is held out, it is another one"):
        images(**photos).load_state_dict(begun[0].state_dict())  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="1 data.workers read the stream, 2 in the checkpoint: its images come in another order"):
        images(**stream, workers=1).load_state_dict(begun[1].state_dict())  # type: ignore[arg-type]
    (tmp_path / "shards" / "2.parquet").unlink()
    with pytest.warns(UserWarning, match="a stream of 2 shards, of 3 in the checkpoint"):
        images(**stream, workers=2).load_state_dict(begun[1].state_dict())  # type: ignore[arg-type]


def test_where_nothing_is_held_out_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    data = images(write_folder(tmp_path / "photos", range(4)), held_out=0)
    for fn, refused in ((TrainerFn.FITTING, False), (TrainerFn.PREDICTING, True), (TrainerFn.TESTING, True)):
        data.trainer = SimpleNamespace(global_rank=0, world_size=1, state=SimpleNamespace(fn=fn))  # type: ignore[assignment]
        with pytest.raises(HuvrError, match="nothing is held out to look at: set held_out") if refused else nullcontext():
            assert data.val_dataloader() == []


@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_nothing_is_held_out_when_asked_for(tmp_path: Path, held_out: float) -> None:
    data = images(write_folder(tmp_path / "photos", range(4)), held_out=held_out)
    assert len(numbers(epoch(data, 0))) == (4 if held_out == 0 else 2)
    assert len(list(data.val_dataloader())) == (0 if held_out == 0 else 1)


def test_a_test_measures_the_test_split_or_else_what_validation_looks_at(tmp_path: Path) -> None:
    for split, pictures in {"train": range(4), "val": [4, 5], "test": [6]}.items():
        write_folder(tmp_path / "three" / split, pictures)
    write_folder(tmp_path / "one", range(10))

    def sides(root: str, **options: Any) -> tuple[list[int], list[int]]:
        data = images(tmp_path / root, **options)
        assert numbers(data.predict_dataloader()) == numbers(data.val_dataloader())
        return numbers(data.val_dataloader()), numbers(data.test_dataloader())

    assert sides("three") == ([4, 5], [6])
    assert sides("three", test_split="val") == ([4, 5], [4, 5])
    assert sides("three", val_split="test") == ([6], [6])
    assert sides("three", train_split="test", val_split="train", test_split="val") == (list(range(4)), [4, 5])
    validated, tested = sides("one", held_out=0.2)
    assert len(validated) == 2
    assert tested == validated


def test_of_a_stream_shorter_than_the_ranks_each_looks_at_an_image(shards: Path) -> None:
    """Or one of them would not take part in the means of all."""
    data = images(shards, streaming=True)
    seen = []
    for number in range(5):
        data.trainer = SimpleNamespace(global_rank=number, world_size=5, strategy=None)
        seen.append(numbers(data.val_dataloader()))
    assert seen == [[100], [101], [102], [100], [100]]


def test_a_rank_whose_images_are_corrupt_looks_at_another_one(tmp_path: Path) -> None:
    write_pack(tmp_path / "train.parquet", [7, 8])
    write_pack(tmp_path / "val-0.parquet", [7])
    write_pack(tmp_path / "val-1.parquet", [], corrupt=[9])
    data = images(tmp_path, streaming=True)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=None)
    with pytest.warns(UserWarning, match="images at the end of the stream skipped"):
        assert numbers(data.val_dataloader()) == [7]


def test_weights_in_shards_are_not_measured_on_a_stream(shards: Path) -> None:
    data = images(shards, streaming=True)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, strategy=Sharded())
    with pytest.raises(HuvrError, match=r"wait for another for good: set trainer\.limit_val_batches 0 or data\.streaming"):
        data.val_dataloader()
    data.trainer = None
    assert numbers(data.val_dataloader()) == [100, 101, 102]


def test_workers_do_not_change_batches_and_hear_of_the_next_epoch(noise: Path) -> None:
    alone, helped = (images(noise, sizes=SHAPES, workers=workers).train_dataloader() for workers in (0, 2))
    first, second = ([epoch_of(loader, number) for number in range(2)] for loader in (alone, helped))
    assert equal(first[0], second[0])
    assert equal(first[1], second[1])
    assert not equal(first[0], first[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("done", [2, 3])
def test_resuming_in_the_middle_gives_exactly_the_rest(
    noise: Path, shards: Path, workers: int, streaming: bool, done: int
) -> None:
    options = {"sizes": SHAPES, "workers": workers, "streaming": streaming, "epoch_size": 14}
    root = shards if streaming else noise
    whole = images(root, **options).train_dataloader()
    expected = [epoch_of(whole, number) for number in (1, 2)]

    broken, resumed = images(root, **options), images(root, **options)
    loader = broken.train_dataloader()
    loader.sampler.set_epoch(1)
    begun = list(islice(loader, done))
    resumed.load_state_dict(broken.state_dict())
    assert resumed.train_dataloader().state_dict() == {"epoch": 1, "batches": done}
    loader = resumed.train_dataloader()
    rest = epoch_of(loader, 1)
    assert equal([*begun, *rest], expected[0])
    assert equal(epoch_of(loader, 2), expected[1])


def in_rounds(batches: Batches, echoes: int) -> Batches:
    """Four batches, the same four until each has come ``echoes`` times, then the next four, or what is left: up to seven."""
    starts = [*range(0, max(1, len(batches) - 3), 4)]
    rounds = [batches[start:end] for start, end in zip(starts, [*starts[1:], len(batches)], strict=True)]
    return [batch for each in rounds for _ in range(echoes) for batch in each]


@pytest.mark.parametrize("echoes", [2, 3])
def test_batches_come_again_with_the_very_same_crops(noise: Path, echoes: int) -> None:
    once, again = (images(noise, sizes=SHAPES, epoch_size=20, echoes=times) for times in (1, echoes))
    expected, found = epoch(once, 1), epoch(again, 1)
    assert len(expected) == 10
    assert len(again.train_dataloader()) == 10 * echoes
    assert equal(in_rounds(expected, echoes), found)
    # a number for each different batch, in all epochs, and how often it comes again
    numbers, left = zip(*(batch["echo"] for batch in found), strict=True)
    rounds = (range(10, 14), range(14, 20))
    assert list(numbers) == [number for each in rounds for _ in range(echoes) for number in each]
    assert list(left) == [again for each in rounds for again in reversed(range(echoes)) for _ in each]
    assert "echo" not in expected[0]


def test_no_step_accumulates_a_batch_and_its_echo(noise: Path) -> None:
    data = images(noise, sizes=SHAPES, epoch_size=32, echoes=2)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=6)
    numbers = [batch["echo"].number for batch in data.train_dataloader()]
    assert numbers == [*range(6), *range(6), *range(6, 16), *range(6, 16)]
    steps = [numbers[start : start + 6] for start in range(0, 32, 6)]
    assert all(len({*step}) == len(step) for step in steps)
    rest = images(noise, sizes=SHAPES, epoch_size=32, echoes=2)  # and ends so with another number of batches a step
    rest.load_state_dict({"epoch": 0, "batches": 10, "together": 6})
    assert [batch["echo"].number for batch in rest.train_dataloader()] == numbers[10:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("done", [0, 3, 7, 12, 17])
def test_resuming_among_echoes_gives_exactly_the_rest(
    noise: Path, shards: Path, workers: int, streaming: bool, done: int
) -> None:
    """Nine batches twice: in the first round, in its echo, and in the last, longer one."""
    options = {"sizes": SHAPES, "workers": workers, "streaming": streaming, "epoch_size": 18, "echoes": 2}
    root = shards if streaming else noise
    whole = epoch(images(root, **options), 1)
    resumed = images(root, **options)
    resumed.load_state_dict({"epoch": 1, "batches": done})
    rest = epoch(resumed, 1)
    assert equal(whole[done:], rest)
    assert [batch["echo"] for batch in whole[done:]] == [batch["echo"] for batch in rest]


def test_a_state_that_comes_after_the_loader_counts_too_but_only_once(noise: Path) -> None:
    data = images(noise)
    loader = data.train_dataloader()
    batches = iter(loader)
    data.load_state_dict({"epoch": 0, "batches": 4})
    assert len(list(batches)) == 2
    assert len(list(loader)) == 6


def test_a_state_of_another_epoch_or_loaded_to_validate_skips_nothing(noise: Path) -> None:
    data = images(noise)
    data.load_state_dict({"epoch": 0, "batches": 6})
    assert len(epoch(data, 1)) == 6
    data.trainer = SimpleNamespace(training=False)
    data.load_state_dict({"epoch": 0, "batches": 4})
    data.trainer = None
    assert len(epoch(data, 0)) == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_ranks_see_different_images_of_the_same_sizes(shards: Path, streaming: bool) -> None:
    seen, shapes = [], []
    for number in range(2):
        data = images(shards, streaming=streaming, sizes=SHAPES, epoch_size=16)
        data.trainer = rank(number, 2)
        batches = epoch(data)
        seen.append(numbers(batches))
        shapes.append([batch["image"].shape for batch in batches])
        data.trainer = None
    assert sorted([*seen[0], *seen[1]]) == list(range(16))
    assert shapes[0] == shapes[1]
    assert len(set(shapes[0])) == 2


def in_training(batch: int, number: int = 0, training: bool = True) -> Any:
    """A trainer of that rank, at that batch of all."""
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=batch))
    return SimpleNamespace(global_rank=number, world_size=2, training=training, fit_loop=loop)


def test_colours_change_on_the_device_where_asked_for_and_alike_for_the_same_batch(tmp_path: Path) -> None:
    data = images(write_folder(tmp_path, range(20)), colour=0.5, colour_on_device=True)
    assert set(numbers(epoch(data))) <= set(range(20))  # the colours of the files still
    grey: dict[str, Any] = {"image": torch.full((64, 3, 8, 8), 100, dtype=torch.uint8)}

    def seen(trainer: Any, **more: Any) -> Tensor:
        data.trainer = trainer
        return data.on_after_batch_transfer(grey | more, 0)["image"]

    of_batch = seen(in_training(3))
    shades = of_batch[:, 0, 0, 0].float()
    assert torch.equal(of_batch, shades.to(torch.uint8).view(-1, 1, 1, 1).expand_as(of_batch))  # grey stays grey, and even
    assert 50 <= shades.min() < 65 < 135 < shades.max() <= 150  # brightness alone changes it: by up to a half
    assert torch.equal(of_batch, seen(in_training(3)))
    assert not torch.equal(of_batch, seen(in_training(4)))
    assert not torch.equal(of_batch, seen(in_training(3, number=1)))
    assert torch.equal(seen(in_training(3), echo=Echo(7, 1)), seen(in_training(5), echo=Echo(7, 0)))
    assert torch.equal(seen(in_training(3, training=False)), grey["image"])
    data.trainer = None


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_replaced_named_and_counted_once(tmp_path: Path, workers: int) -> None:
    folder = write_folder(tmp_path / "photos", range(10), corrupt=[4, 7])
    data = images(folder, held_out=0, workers=workers)
    loader = data.train_dataloader()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first, second = (sorted(numbers(epoch_of(loader, number))) for number in range(2))
    assert first == second == [0, 1, 2, 3, 5, 5, 6, 8, 8, 9]  # the next one in place of a corrupt one
    messages = sorted(str(warning.message) for warning in told if "skipped" in str(warning.message))
    assert [message.partition(" so far")[0] for message in messages] == ["image skipped, 1", "image skipped, 2"]
    assert all(any(name in message for message in messages) for name in ("004.png", "007.png"))


def test_corrupt_rows_of_a_stream_are_replaced_and_named_even_at_its_end(tmp_path: Path) -> None:
    write_pack(tmp_path / "train.parquet", range(4), corrupt=[1])
    write_pack(tmp_path / "val.parquet", range(10, 13), corrupt=[10, 12])
    data = images(tmp_path, streaming=True, epoch_size=4)
    with pytest.warns(UserWarning, match=r"image skipped, 1 so far: 001\.png: not a readable image"):
        assert set(numbers(epoch(data))) == {0, 2, 3}
    with pytest.warns(UserWarning, match=r"end of the stream skipped: 012\.png"), pytest.warns(UserWarning, match=r"010\.png"):
        assert numbers(data.val_dataloader()) == [11, 11]


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("streaming", [False, True])
def test_all_corrupt_is_an_error(tmp_path: Path, streaming: bool) -> None:
    write_pack(tmp_path / "x.parquet", [], corrupt=range(3))
    with pytest.raises(HuvrError, match=r"no image is readable|none of the 3 images is readable"):
        images(tmp_path, streaming=streaming, held_out=0)


def test_a_stream_gives_up_after_many_corrupt_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PATIENCE", 2)
    monkeypatch.setattr(stream, "SHUFFLE_BUFFER", 1)
    data = images(write_pack(tmp_path / "x.parquet", [0], corrupt=[1, 2]), streaming=True, held_out=0, epoch_size=8)
    with pytest.raises(HuvrError, match=r"^\S+x\.parquet: 2 unreadable images in a row, the first being 00\d\.png: [^\n]+$"):
        epoch(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "training"}, "no split 'training'; it has train, validation"),
        ({"val_split": "test"}, "no split 'test'; it has train, validation"),
        ({"val_split": "train"}, "train_split and val_split are both 'train'"),
        ({"test_split": "train"}, "train_split and test_split are both 'train'"),
        ({"held_out": 1.0}, "held_out 1.0: expected a share from 0 to below 1"),
        ({"scale": (0.5, 0.2)}, "expected two shares of an image's area"),
        ({"colour": 2}, "colour 2: expected a strength from 0 to 1"),
        ({"sizes": []}, "expected whole numbers, 1 or more"),
        ({"batch_size": 0}, "expected whole numbers, 1 or more"),
        ({"workers": -1}, "workers -1, epoch_size None: expected 0 or more workers"),
        ({"echoes": 0}, "echoes 0: expected a whole number, 1 or more"),
        ({"epoch_size": 0}, "workers 0, epoch_size 0: expected 0 or more workers, 1 or more samples"),
    ],
)
def test_wrong_options_are_errors_that_say_what_is_allowed(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        images(shards, **options)


def test_a_batch_larger_than_the_data_is_an_error(noise: Path) -> None:
    with pytest.raises(HuvrError, match=r"batch_size 64 on 1 device.* more than the 12 training images of an epoch: at most 12"):
        images(noise, batch_size=64).train_dataloader()


def test_one_image_cannot_be_divided(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", [5])
    with pytest.raises(HuvrError, match=r"1 image\(s\), too few to hold one out; set held_out 0"):
        images(folder)
    assert numbers(epoch(images(folder, held_out=0, epoch_size=4))) == [5] * 4


def test_a_stream_needs_a_held_out_split_and_a_length(tmp_path: Path) -> None:
    root = write_pack(tmp_path / "x.parquet", range(4))
    with pytest.raises(HuvrError, match="a stream cannot be divided: set val_split or held_out 0"):
        images(root, streaming=True)
    with pytest.raises(HuvrError, match="length of this stream is not known: set epoch_size"):
        images(root, streaming=True, held_out=0).train_dataloader()
