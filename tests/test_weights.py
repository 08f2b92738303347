"""Our own format, training checkpoints, the hub, and what is no source of weights."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny_hypernets
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

import huvr
from huvr import weights
from huvr.errors import HuvrError
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.model import HUVR, HUVRConfig
from huvr.pretrain import Pretraining
from huvr.teacher import TeacherConfig

RELEASED = Path(__file__).parent / "fixtures" / "released" / "tiny_mlp_decoder"
TINY = HUVRConfig(
    image_size=32, patch=8, width=48, depth=1, heads=3, tintok_dim=6, decoder_width=40, decoder_depth=1, decoder_heads=2,
    decoder_hidden=64, inr_widths=(16, 20, 24), inr_frequencies=4, inr_max_frequency=16.0,
)  # fmt: skip
State = dict[str, Tensor]


def a_model(**changes: Any) -> HUVR:
    torch.manual_seed(0)
    return HUVR(replace(TINY, **changes)).eval()


def copy_of(model: torch.nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modulation": "released", "decoder_attention": True, "registers": 2},
        {"positions": "index", "tintok_dim": 48, "distill_dims": {"encoder_cls": 5, "decoder_patches_1": 7}},
        {"tintok_dim": 40, "decoder_depth": 0},
        {"encoder": "test_vit"},
    ],
)
def test_what_is_saved_is_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, images = a_model(**changes), torch.rand(2, 3, 40, 25)
    model.train().save(tmp_path / "new" / "dir")
    assert sorted(path.name for path in (tmp_path / "new" / "dir").iterdir()) == ["config.json", "model.safetensors"]
    for source in (tmp_path / "new" / "dir", str(tmp_path / "new" / "dir" / "model.safetensors")):
        loaded = huvr.load(source)
        assert loaded.config == model.config
        assert not loaded.training
        same(loaded.state_dict(), model.state_dict())
        assert torch.equal(loaded.reconstruct(images), model.eval().reconstruct(images))


def test_saving_again_replaces(tmp_path: Path) -> None:
    a_model().save(tmp_path)
    second = a_model(tintok_dim=7)
    second.save(tmp_path)
    same(huvr.load(tmp_path).state_dict(), second.state_dict())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("writer", ["write_safetensors", "Path.write_text"])
def test_a_save_that_fails_leaves_no_half(tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model()
    model.save(tmp_path / "old")

    def full(*arguments: Any) -> None:
        next(each for each in arguments if isinstance(each, Path)).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    if writer == "write_safetensors":
        monkeypatch.setattr(weights, writer, full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    for folder in ("old", "new"):
        with pytest.raises(HuvrError, match=r"^cannot write [^\n]*: No space left on device$"):
            a_model(tintok_dim=9).save(tmp_path / folder)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert len(list((tmp_path / "old").iterdir())) == 2
    same(huvr.load(tmp_path / "old").state_dict(), model.state_dict())


@pytest.mark.parametrize("form", ["huvr", "released", "released .pth"])
def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for place in ("huvr.weights.write_safetensors", "huvr.released.write_safetensors", "huvr.released.write_torch"):
        monkeypatch.setattr(place, full)
    to, _, suffix = form.partition(" ")
    with pytest.raises(HuvrError, match="No space left on device"):
        weights.convert(RELEASED, tmp_path / "new" / f"out{suffix}", to=to)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HuvrError, match=r"^cannot write [^\n]*file/dir/model\.safetensors: [^\n]*/file is a file, not a folder$"):
        a_model().save(tmp_path / "file" / "dir")
    with pytest.raises(HuvrError, match=r"^cannot write [^\n]*file/dir: [^\n]*/file is a file, not a folder$"):
        weights.convert(RELEASED, tmp_path / "file" / "dir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_conversion_spares_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file.pth").touch()
    (tmp_path / "empty").mkdir()
    for out in ("full", "file.pth"):
        with pytest.raises(HuvrError, match=f"{out} exists already: choose a new or empty directory"):
            weights.convert(RELEASED, tmp_path / out)
    weights.convert(RELEASED, tmp_path / "empty")
    same(huvr.load(tmp_path / "empty").state_dict(), huvr.load(RELEASED).state_dict())
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


class Recorder(Callback):
    """The network after each step."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.states.append(copy_of(pl_module.net))


def pretrain(run: Path, *callbacks: Callback, teachers: list[TeacherConfig] | None = None) -> list[State]:
    """Two steps, with a checkpoint ``run/checkpoints/last.ckpt``; the weights after each of them."""
    torch.manual_seed(0)
    recorder = Recorder()
    images = [{"image": image} for image in torch.rand(8, 3, 32, 32)]
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[recorder, ModelCheckpoint(run / "checkpoints", save_last=True), *callbacks],
    )  # fmt: skip
    module = Pretraining(TINY, teachers or [], lr=1.0, warmup=0.0, pictures_every=0)
    trainer.fit(module, DataLoader(images, batch_size=4))  # type: ignore[arg-type]
    return recorder.states


def test_a_pretraining_is_loaded_from_its_run_or_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [_, trained] = pretrain(tmp_path / "run")
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        with caplog.at_level(logging.WARNING, logger="huvr"):
            model = huvr.load(source)
        assert model.config == TINY
        same(model.state_dict(), trained)
    assert [record for record in caplog.records if record.name.startswith("huvr")] == []  # nothing was ignored


def test_distillation_heads_are_loaded_too(tmp_path: Path) -> None:
    import timm

    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "teacher.safetensors")
    [_, trained] = pretrain(tmp_path / "run", teachers=[TeacherConfig("test_vit", str(tmp_path / "teacher.safetensors"))])
    model = huvr.load(tmp_path / "run")
    assert "distill.decoder_patches.1.weight" in trained
    same(model.state_dict(), trained)


def test_the_average_is_loaded_where_there_is_one(tmp_path: Path) -> None:
    first, second = pretrain(tmp_path / "run", EMAWeightAveraging(decay=0.75))
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    raw = torch.load(file, weights_only=True)["current_model_state"]
    same({name.removeprefix("net."): tensor for name, tensor in raw.items()}, second)
    loaded = huvr.load(file).state_dict()
    # the first update copies
    torch.testing.assert_close(loaded, {name: 0.75 * first[name] + 0.25 * second[name] for name in first})
    name = "inr.to_pixels.weight"
    assert (loaded[name] - second[name]).abs().max() > 1e-3


def test_the_last_checkpoint_of_a_run_is_taken(tmp_path: Path) -> None:
    def checkpoint(name: str, tintok_dim: int, time: int) -> None:
        path = tmp_path / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        state = {f"net.{key}": tensor for key, tensor in a_model(tintok_dim=tintok_dim).state_dict().items()}
        torch.save({"huvr_config": asdict(replace(TINY, tintok_dim=tintok_dim)), "state_dict": state}, path)
        os.utime(path, (time, time))

    for number, (name, time) in enumerate([("b.ckpt", 5), ("a.ckpt", 9), ("last.ckpt", 3), ("last-v1.ckpt", 4)], start=1):
        checkpoint(name, number, time)
        # the newest, or whatever is called last, or the newest of these
        assert huvr.load(tmp_path).config.tintok_dim == number
    checkpoint("z.ckpt", 5, 99)
    assert huvr.load(tmp_path).config.tintok_dim == 4


def test_tensors_beside_the_network_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {f"net.{name}": tensor for name, tensor in a_model().state_dict().items()}
    torch.save({"huvr_config": asdict(TINY), "state_dict": state | {"head.weight": torch.zeros(2)}}, tmp_path / "a.ckpt")
    with caplog.at_level(logging.WARNING):
        huvr.load(tmp_path / "a.ckpt")
    assert caplog.messages == [f"{tmp_path / 'a.ckpt'}: ignored the tensors of head, which are no part of the network"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["state_dict"].pop("net.inr.to_pixels.bias"), "tensors are missing: inr.to_pixels.bias"),
        (lambda c: c["state_dict"].update({"net.x": torch.zeros(1)}), "tensors that this network has no use for: x"),
        (lambda c: c["huvr_config"].update(tintok_dim=8), "bottleneck.down.1.weight has shape (6, 48), expected (8, 48)"),
        (lambda c: c["huvr_config"].update(colour="red"), "not the config of a HUVR network ("),
        (lambda c: c["huvr_config"].update(inr_widths=(1, 2)), "not the config of a HUVR network ("),
        (lambda c: c["huvr_config"].update(heads=0), "not the config of a HUVR network (heads 0: expected 1 or more"),
        (lambda c: c["huvr_config"].update(distill_dims={"encoder.cls": 8}), "no network can be built from its config ("),
        (lambda c: c["huvr_config"].update(inr_upsample=3), "inr_upsample 3: expected a divisor of the patch size 8: 1, 2, 4, 8"),
        (lambda c: c.update(huvr_config=[1]), "not the config of a HUVR network ("),
        (lambda c: c.pop("state_dict"), "its weights are not a dictionary of tensors by name"),
        (lambda c: c.pop("huvr_config"), "a Lightning checkpoint of something else; expected the checkpoint of a HUVR"),
    ],
)  # fmt: skip
def test_checkpoints_that_are_refused(tmp_path: Path, edit: Callable[[dict], Any], message: str) -> None:
    content = {
        "huvr_config": asdict(TINY),
        "state_dict": {f"net.{name}": tensor for name, tensor in a_model().state_dict().items()},
    }
    edit(content)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(HuvrError, match=rf"^{tmp_path / 'a.ckpt'}: {re.escape(message)}[^\n]*$"):
        huvr.load(tmp_path / "a.ckpt")


def test_huvr_trained_as_a_hyper_network_is_loaded(tmp_path: Path) -> None:
    net = tiny_hypernets.tiny("PatchwiseHUVR")
    assert isinstance(net, PatchwiseHUVR)
    run = tiny_hypernets.run_of(net, tmp_path / "run")
    for source in (run, f"{run}/checkpoints/last.ckpt"):
        model = huvr.load(source)
        assert model.config == net.net.config
        assert not model.training
        same(model.state_dict(), net.net.state_dict())
    model.save(tmp_path / "saved")
    same(huvr.load(tmp_path / "saved").state_dict(), net.net.state_dict())


@pytest.mark.parametrize("name", [*tiny_hypernets.CONTINUOUS, "MAE", "LIFT"])
def test_runs_of_other_hyper_networks_are_named(name: str, tmp_path: Path) -> None:
    run = tiny_hypernets.run_of(tiny_hypernets.tiny(name), tmp_path / "run")
    message = f"a run of {name}, which is no HUVR network and has no TinToks; huvr probe takes it"
    with pytest.raises(HuvrError, match=rf"^{run}/checkpoints/last\.ckpt: {message}$"):
        huvr.load(run)


def test_a_lift_of_volumes_is_named_too(tmp_path: Path) -> None:
    from huvr.hypernets.lift import LIFT
    from huvr.weights import LIFT_KEY

    net = LIFT(replace(tiny_hypernets.LIFT_SHAPE, dims=3, channels=1))
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({LIFT_KEY: asdict(net.config), "state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(HuvrError, match=r"a\.ckpt: a run of LIFT, which is no HUVR network and has no TinToks$"):
        huvr.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (["os.system"], "a Lightning checkpoint of something else; expected the checkpoint of a HUVR pretraining"),
        ({"name": "os.system"}, "a run of os.system, which is no HUVR network and has no TinToks"),
        ({"name": "PatchwiseHUVR", "config": {"net": 3}}, "not the config of a HUVR network"),
    ],
)
def test_damaged_runs_of_hyper_networks(description: Any, message: str, tmp_path: Path) -> None:
    torch.save({"hypernet": description, "state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(HuvrError, match=rf"^[^\n]*a\.ckpt: {message}[^\n]*$"):
        huvr.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "config.json: version 2 of the format; this huvr reads version 1"),
        ({"colour": "red"}, "config.json: not the config of a HUVR network ("),
        ({"decoder_hidden": 65}, "model.safetensors: decoder.layers.0.mlp.fc1.weight has shape (64, 40), expected (65, 40)"),
        ({"depth": 2}, "model.safetensors: tensors are missing: encoder.vit.blocks.1.attn.proj.bias, "),
        ({"encoder": "no_such_vit"}, "config.json: encoder 'no_such_vit' is not a timm ViT"),
        ({"format": "other"}, "model.safetensors: the config.json that huvr saved beside it is missing"),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    a_model().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(HuvrError, match=rf"^{re.escape(f'{tmp_path}/{message}')}[^\n]*$"):
        huvr.load(tmp_path)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    a_model().save(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    for edited, message in (
        ({**whole, "more": torch.zeros(1)}, "tensors that this network has no use for: more"),
        ({name: tensor for name, tensor in whole.items() if name != "encoder.mean"}, "tensors are missing: encoder.mean"),
        (
            {name: tensor for name, tensor in whole.items() if "inr" not in name},
            "inr.cosine_head.of_global.weight, inr.cosine_head.of_patch.bias, inr.cosine_head.of_patch.weight and 16 more",
        ),
    ):
        save_file(edited, tmp_path / "model.safetensors")
        with pytest.raises(HuvrError, match=rf"model\.safetensors: [^\n]*{re.escape(message)}$"):
            huvr.load(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    a_model().save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(HuvrError, match=r"model\.safetensors: not a readable safetensors file \([^\n]+\)$"):
        huvr.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HuvrError, match=r"config\.json: not a readable JSON file \([^\n]+\)$"):
        huvr.load(tmp_path)


def test_our_weights_without_their_config(tmp_path: Path) -> None:
    a_model(tintok_dim=40).save(tmp_path)  # no projection up
    (tmp_path / "config.json").unlink()
    with pytest.raises(HuvrError, match=r"model\.safetensors: the config\.json that huvr saved beside it is missing$"):
        huvr.load(tmp_path)


@pytest.mark.parametrize("name", ["gone.safetensors", "runs/gone/deep", "runs/gone.ckpt", "/gone/dir", "../gone", "gone"])
def test_missing_files(name: str) -> None:
    with pytest.raises(HuvrError, match=rf"^{re.escape(name)}: no such file or directory; expected a directory with [^\n]+$"):
        huvr.load(name)


def test_files_and_folders_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(HuvrError, match=r"photo\.jpg: not a file of weights; expected a directory with [^\n]+$"):
        huvr.load(tmp_path / "photo.jpg")
    with pytest.raises(HuvrError, match=rf"^{tmp_path}: no weights found here; expected a directory with [^\n]+$"):
        huvr.load(tmp_path)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(HuvrError, match=rf"^device '{device}' cannot be used \([^\n]+\)$"):
        huvr.load(RELEASED, device=device)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of one downloaded repository, "someone/huvr-tiny", out of reach of the hub itself."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository, commit = tmp_path / "cache" / "models--someone--huvr-tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(RELEASED / name, snapshot)
    return snapshot


def test_a_hub_id(hub: Path) -> None:
    same(huvr.load("someone/huvr-tiny").state_dict(), huvr.load(RELEASED).state_dict())
    (hub / "model.safetensors").unlink()
    with pytest.raises(HuvrError, match=r"^someone/huvr-tiny: this Hugging Face repository has no model\.safetensors$"):
        huvr.load("someone/huvr-tiny")


@pytest.mark.usefixtures("hub")
def test_a_hub_id_out_of_reach() -> None:
    message = r"^someone/other: no such file or directory, and not to be had from the Hugging Face hub \([^\n]+\); [^\n]+$"
    with pytest.raises(HuvrError, match=message):
        huvr.load("someone/other")
