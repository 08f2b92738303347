"""Released checkpoints: real names and shapes, inference of the network, the way back, and what is refused."""

from __future__ import annotations

import json
import logging
import re
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import huvr
from huvr.errors import HuvrError
from huvr.model import HUVR, HUVRConfig
from huvr.weights import convert, save_released, to_released

RELEASED = Path(__file__).parent / "fixtures" / "released"
TOKENWISE, ATTENTIVE = RELEASED / "tiny_mlp_decoder", RELEASED / "tiny_attention_decoder_registers"
KEPT = "transformer_encoder.blocks.0.attn.rope"  # the one place of the rope tables that safetensors files keep
TINY = HUVRConfig(
    image_size=64, patch=8, width=96, depth=3, heads=4, tintok_dim=16, decoder_width=64, decoder_depth=3, decoder_heads=4,
    decoder_hidden=128, inr_widths=(48, 40, 32), inr_frequencies=8, inr_max_frequency=1024.0, modulation="released",
    distill_dims={"encoder_cls": 24, "encoder_patches": 24, "decoder_cls": 20, "decoder_patches": 20},
)  # fmt: skip


def rope_tables(side: int, head_width: int) -> dict[str, Tensor]:
    """The released tables: a row a patch, its row's angles and then its column's, each for two channels."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, head_width // 2, 2).float() / (head_width // 2))
    positions = torch.arange(side) / side * 16
    angles = (positions[:, None] * frequencies).repeat_interleave(2, dim=1)
    rows, columns = angles[:, None].expand(side, side, -1), angles[None].expand(side, side, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return {"freqs_cos": angles.cos(), "freqs_sin": angles.sin()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def vitb() -> dict[str, Tensor]:
    """The real ViT-B's 283 tensors as in a ``.pth``, at random."""
    lines = (RELEASED / "official_vitb_emb32_keys.txt").read_text().splitlines()
    shapes = {name: literal_eval(shape) for name, shape, _ in (line.split("\t") for line in lines if not line.startswith("#"))}
    tables, generator = rope_tables(16, 48), torch.Generator().manual_seed(0)
    return {
        name: tables[name.rpartition(".")[2]] if ".rope." in name else torch.randn(shape, generator=generator) / 20
        for name, shape in shapes.items()
    }


@pytest.fixture
def large_files() -> Iterator[Path]:
    """A folder that does not stay behind, as pytest's own would."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_the_real_vit_b_there_and_back(large_files: Path, vitb: dict[str, Tensor], form: str) -> None:
    source = large_files / f"official.{form}"
    if form == "pth":
        back, tensors, count = large_files / "back.pth", vitb, 283
        torch.save({"model": tensors}, source)
    else:
        tensors = {name: tensor for name, tensor in vitb.items() if ".rope." not in name or name.startswith(KEPT)}
        back, count = large_files / "back", 283 - 24
        save_file(tensors, source)
    assert len(tensors) == count
    model = huvr.load(source)
    assert sum(parameter.numel() for parameter in model.parameters()) == 123_837_328
    with torch.no_grad():
        picture = model.reconstruct(torch.rand(1, 3, 256, 256))
    assert picture.shape == (1, 3, 256, 256)
    assert picture.isfinite().all()
    assert picture.std() > 0
    del model
    convert(source, back, to="released")
    source.unlink()
    found = torch.load(back, weights_only=True, mmap=True)["model"] if form == "pth" else load_file(back / "model.safetensors")
    same(found, tensors)


@pytest.mark.parametrize("original", [TOKENWISE, ATTENTIVE])
def test_through_our_format_and_back(tmp_path: Path, original: Path) -> None:
    convert(original, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="released")
    same(load_file(tmp_path / "back" / "model.safetensors"), load_file(original / "model.safetensors"))
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["config.json", "model.safetensors"]
    stated, written = (json.loads((folder / "config.json").read_text()) for folder in (original, tmp_path / "back"))
    # what the released code leaves to its default, we spell out
    assert written["hyponet_cfg"].pop("pe_sigma") == 1024
    assert written == stated


def test_the_trainers_checkpoint_and_back(tmp_path: Path) -> None:
    original = torch.load(TOKENWISE / "train_checkpoint.pth", weights_only=True)
    convert(TOKENWISE / "train_checkpoint.pth", tmp_path / "back.pth", to="released")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    same(back["model"], original["model"])
    for section, stated in original["cfg"].items():
        if isinstance(stated, dict):
            assert stated.items() <= back["cfg"][section].items(), section
        else:
            assert back["cfg"][section] == stated, section


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TOKENWISE, TINY),
        (TOKENWISE / "train_checkpoint.pth", TINY),
        (ATTENTIVE, replace(TINY, registers=4, decoder_attention=True)),
    ],
)
def test_the_shape_of_the_network_is_found(source: Path, expected: HUVRConfig) -> None:
    assert huvr.load(source).config == expected


def test_tensors_alone_tell_the_shape_of_the_network(tmp_path: Path) -> None:
    tensors, images = load_file(TOKENWISE / "model.safetensors"), torch.rand(1, 3, 64, 64)
    save_file(tensors, tmp_path / "some.safetensors")
    model = huvr.load(tmp_path / "some.safetensors")
    assert model.config == replace(TINY, decoder_heads=1)  # a decoder without attention has no use for heads
    assert torch.equal(model.reconstruct(images), huvr.load(TOKENWISE).reconstruct(images))


@pytest.mark.parametrize(
    "changes",
    [
        {"tintok_dim": 96},  # no projection down
        {"tintok_dim": 64},  # no projection up
        {"decoder_depth": 0, "decoder_width": 96},  # no decoder
        {"distill_dims": {}},
        {"distill_dims": {"encoder_cls": 7, "decoder_patches": 5}},
        {"image_size": 32, "patch": 16, "width": 32, "depth": 1, "heads": 2, "decoder_hidden": 40, "registers": 2},
        {"inr_widths": (8, 20, 12), "inr_frequencies": 3, "inr_max_frequency": 64.0, "inr_upsample": 2},
    ],
)
@pytest.mark.parametrize("form", ["", ".pth"])
def test_other_shapes_are_found_too(tmp_path: Path, changes: dict[str, Any], form: str) -> None:
    torch.manual_seed(0)
    model = HUVR(replace(TINY, **changes))
    save_released(model, tmp_path / f"released{form}")
    found = huvr.load(tmp_path / f"released{form}")
    used = model.config if model.config.decoder_depth else replace(model.config, decoder_heads=1, decoder_hidden=4 * 96)
    assert found.config in (model.config, used)
    same(found.state_dict(), model.state_dict())


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in load_file(TOKENWISE / "model.safetensors").items()}
    save_file(half, tmp_path / "half.safetensors")
    model = huvr.load(tmp_path / "half.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for name, tensor in to_released(model).items():
        assert ".rope." in name or torch.equal(tensor, half[name].float()), name


def write(folder: Path, original: Path, edit: Callable[[dict[str, Tensor]], Any], edit_config: Callable[[dict], Any]) -> Path:
    tensors, config = load_file(original / "model.safetensors"), json.loads((original / "config.json").read_text())
    edit(tensors)
    edit_config(config)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def nothing(_: dict) -> None:
    """Leave it as it is."""


def put(name: str, value: Any) -> Callable[[dict], None]:
    """Set an entry; "section.key" is one inside a section."""

    def edit(entries: dict) -> None:
        section, _, key = name.partition("_cfg.")
        (entries[f"{section}_cfg"] if key else entries)[key or name] = value

    return edit


def drop(prefix: str) -> Callable[[dict], None]:
    def edit(entries: dict) -> None:
        for name in [name for name in entries if name.startswith(prefix)]:
            del entries[name]

    return edit


BLOCK = "transformer_encoder.blocks.2"
WRONG_PLACES = rope_tables(8, 24)["freqs_cos"].roll(1, dims=0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("some.more", torch.zeros(1)), "tensors that this network has no use for: some.more"),
        (drop("dimension_upsample.0.bias"), "tensors are missing: dimension_upsample.0.bias"),
        (drop("transformer_encoder.blocks.1."), "tensors are missing: transformer_encoder.blocks.1.attn.proj.bias, "),
        (put("dimension_downsample.0.bias", torch.zeros(97)), "dimension_downsample.0.bias has shape (97,), expected (96,)"),
        (put(f"{BLOCK}.mlp.w1.bias", torch.zeros(384)), f"{BLOCK}.mlp.w1.bias has shape (384,), expected (256,)"),
        (drop("transformer_encoder.patch_embed"), "no tensor transformer_encoder.patch_embed.proj.weight, so this is no"),
        (drop(KEPT), "no tensor transformer_encoder.rope.freqs_cos, so this is no released HUVR"),
        (put(f"{KEPT}.freqs_cos", WRONG_PLACES), f"{KEPT}.freqs_cos holds other positions than the released ones"),
        (put(f"{KEPT}.freqs_cos", torch.full((64, 24), float("nan"))), f"{KEPT}.freqs_cos holds other positions"),
        (put(f"{KEPT}.freqs_sin", torch.zeros(64, 48)), f"{KEPT}.freqs_sin holds other positions"),
        (put("transformer_encoder.rope.freqs_cos", WRONG_PLACES), "transformer_encoder.rope.freqs_cos holds other positions"),
        (put(f"{KEPT}.freqs_cos", torch.zeros(64, 0)), "shapes or settings are not those of a released HUVR"),
        (put("base_params.wb0", torch.zeros(33)), "shapes or settings are not those of a released HUVR"),
        (put("tokenizer.decoder_posemb", torch.zeros(64, 64)), "decoder_type = 'old', positions added before the"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(tmp_path: Path, edit: Callable[[dict], None], message: str) -> None:
    folder = write(tmp_path, TOKENWISE, edit, nothing)
    with pytest.raises(HuvrError, match=rf"^{folder / 'model.safetensors'}: {re.escape(message)}[^\n]*$"):
        huvr.load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("decoder_type", "old"), "decoder_type = 'old', positions added before the decoder, is not supported, only"),
        (put("decoder_type", "none"), "its settings say decoder_type = 'none', but its tensors 'pos_free'"),
        (put("use_hypocnn", False), "use_hypocnn = False is not supported, only True is"),
        (put("is_patch_mode", False), "is_patch_mode = False is not supported, only True is"),
        (put("mod_idxs", "1_2"), "mod_idxs = '1_2' is not supported, only '1' is"),
        (put("hyponet_cfg.out_bias", 0.5), "hyponet.out_bias = 0.5 is not supported, only 0.0 is"),
        (put("transformer_transcoder_cfg.dim", 16), "transformer_transcoder.dim = 16 is not supported, only -1 is"),
        (put("embedding_dim", 8), "its settings say embedding_dim = 8, but its tensors 16"),
        (put("tokenizer_cfg.input_size", 128), "its settings say tokenizer.input_size = 128, but its tensors 64"),
        (put("transformer_decoder_cfg.ff_dim", 256), "its settings say transformer_decoder.ff_dim = 256, but its tensors 128"),
        (put("transformer_decoder_cfg.depth", 4), "its settings say transformer_decoder.depth = 4, but its tensors 3"),
        (put("transformer_decoder_cfg.attention", True), "its settings say transformer_decoder.attention = True, but its"),
        (put("hyponet_cfg.hidden_dim", "40_48"), "its settings say hyponet.hidden_dim = '40_48', but its tensors '48_40'"),
        (put("hyponet_cfg.pe_sigma", "high"), "shapes or settings are not those of a released HUVR"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(tmp_path: Path, edit: Callable[[dict], None], message: str) -> None:
    folder = write(tmp_path, TOKENWISE, nothing, edit)
    with pytest.raises(HuvrError, match=rf"^{folder / 'model.safetensors'}: {re.escape(message)}[^\n]*$"):
        huvr.load(folder)


def test_the_heads_of_an_attentive_decoder_must_be_stated(tmp_path: Path) -> None:
    tensors = load_file(ATTENTIVE / "model.safetensors")
    save_file(tensors, tmp_path / "alone.safetensors")
    with pytest.raises(HuvrError, match=r"alone\.safetensors: tensors do not tell the decoder's attention heads: put the"):
        huvr.load(tmp_path / "alone.safetensors")


def test_settings_and_training_state_without_a_use_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, TOKENWISE, nothing, lambda config: config.update(colour="red", hyponet_cfg={"width": 3}))
    with caplog.at_level(logging.WARNING):
        huvr.load(folder)
    assert caplog.messages == [f"{folder / 'model.safetensors'}: ignored the settings colour, hyponet.width"]
    caplog.clear()
    huvr.load(TOKENWISE / "train_checkpoint.pth")
    assert caplog.messages == [f"{TOKENWISE / 'train_checkpoint.pth'}: ignored the training state: epoch, optimizer, scaler"]
    caplog.clear()
    huvr.load(TOKENWISE)
    assert caplog.messages == []


def test_a_repeated_rope_table_that_differs(tmp_path: Path) -> None:
    content = torch.load(TOKENWISE / "train_checkpoint.pth", weights_only=True)
    content["model"]["transformer_encoder.blocks.2.attn.rope.freqs_cos"] = WRONG_PLACES
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(HuvrError, match=r"a\.pth: transformer_encoder\.blocks\.2\.attn\.rope\.freqs_cos holds other positions"):
        huvr.load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": 1}}, "its weights are not a dictionary of tensors by name"),
        ({"model": {1: torch.zeros(1)}}, "its weights are not a dictionary of tensors by name"),
        ({"model": [torch.zeros(1)]}, "its weights are not a dictionary of tensors by name"),
        ({"model": {}}, "no tensor transformer_encoder.patch_embed.proj.weight"),
        ({"model": {}, "cfg": "vitb.yaml"}, "its cfg is a str, expected a dictionary"),
        ({"weights": {}}, "a file of something else; expected the checkpoint of a HUVR pretraining or of the released trainer"),
    ],
)
def test_trainer_checkpoints_that_are_none(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(HuvrError, match=rf"^{tmp_path / 'a.pth'}: {re.escape(message)}[^\n]*$"):
        huvr.load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modulation": "free"}, "only networks with modulation 'released', the encoder built in and positions 'scaled'"),
        ({"positions": "index"}, "only networks with modulation 'released', the encoder built in and positions 'scaled'"),
        ({"encoder": "test_vit", "image_size": 32}, "only networks with modulation 'released', the encoder built in"),
        ({"distill_dims": {"encoder_cls": 4, "encoder_cls_1": 5}}, "no place for the distillation heads encoder_cls_1"),
    ],
)
@pytest.mark.parametrize("out", ["out", "out.pth"])
def test_networks_without_a_released_form(tmp_path: Path, changes: dict[str, Any], message: str, out: str) -> None:
    HUVR(replace(TINY, **changes)).save(tmp_path / "ours")
    with pytest.raises(HuvrError, match=re.escape(message)):
        convert(tmp_path / "ours", tmp_path / out, to="released")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
