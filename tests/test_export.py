"""Exported graphs, run without huvr, against the network itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor

import huvr
from huvr.commands import export as module
from huvr.commands.arguments import call
from huvr.commands.export import export
from huvr.errors import HuvrError
from huvr.model import HUVR

Run = Callable[..., list[Tensor]]
SIZES = [(1, 16, 16), (3, 24, 72), (2, 56, 40), (4, 32, 32)]  # none of them is that of the export; the last, that of training


def opened(file: Path) -> Run:
    """An exported graph as a function of tensors, in the order of its inputs."""
    if file.suffix == ".pt2":
        program = torch.export.load(file).module()

        def run_torch(*inputs: Tensor) -> list[Tensor]:
            outputs = program(*inputs)
            return [outputs] if isinstance(outputs, Tensor) else list(outputs)

        return run_torch
    session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run_onnx(*inputs: Tensor) -> list[Tensor]:
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        return [torch.from_numpy(array) for array in found]

    return run_onnx


def needs_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def agree(folder: Path, suffix: str, model: HUVR) -> None:
    """Both graphs give what the network gives, at every batch and size."""
    encode, reconstruct = (opened(folder / f"{name}.{suffix}") for name in ("encode", "reconstruct"))
    for batch, height, width in SIZES:
        height, width = height * model.patch // 8, width * model.patch // 8
        images = torch.rand(batch, 3, height, width)
        cls, patches, tintok_cls, tintok_patches = encode(images)
        with torch.inference_mode():
            tokens = model.encode(images)
            tintoks = model.compress(tokens)
            picture = model.reconstruct(images)
        grid = (height // model.patch, width // model.patch)
        expected = [tokens.cls, tokens.patches.unflatten(1, grid), tintoks.cls, tintoks.patches.unflatten(1, grid)]
        for ours, theirs in zip((cls, patches, tintok_cls, tintok_patches), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        (found,) = reconstruct(tintok_cls, tintok_patches)
        torch.testing.assert_close(found, picture, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def exported(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of ``encoder`` as ONNX."""
    needs_onnx()
    out = tmp_path_factory.mktemp("exported") / "out"
    call(export, ["--encoder", encoder, "--out", str(out)])
    return out


def test_onnx_equals_the_network_at_any_batch_and_size(encoder: str, exported: Path) -> None:
    assert written(exported) == ["encode.onnx", "export.json", "reconstruct.onnx"]
    agree(exported, "onnx", huvr.load(encoder))


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_onnx_of_the_released_form_on_an_encoder_of_timm(name: str, encoder: str, tmp_path: Path) -> None:
    needs_onnx()
    torch.manual_seed(0)
    form: dict[str, Any] = {"encoder": name, "modulation": "released", "decoder_attention": True}
    HUVR(replace(huvr.load(encoder).config, **form)).save(tmp_path / "net")
    export(encoder=str(tmp_path / "net"), out=tmp_path / "out")
    agree(tmp_path / "out", "onnx", huvr.load(tmp_path / "net"))


def test_torch_equals_the_network_and_no_graph_carries_weights_of_the_other(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = HUVR(replace(huvr.load(encoder).config, width=192, depth=2, distill_dims={"encoder_cls": 2000})).eval()
    model.save(tmp_path / "net")
    out = tmp_path / "out"
    call(export, ["--encoder", str(tmp_path / "net"), "--out", str(out), "--format", "torch"])
    assert f"{out}/reconstruct.pt2: differs from PyTorch by" in capsys.readouterr().out
    assert written(out) == ["encode.pt2", "export.json", "reconstruct.pt2"]
    agree(out, "pt2", model)
    of_encoder = 4 * sum(parameter.numel() for parameter in model.encoder.parameters())
    assert of_encoder < (out / "encode.pt2").stat().st_size < 1.3 * of_encoder
    assert (out / "reconstruct.pt2").stat().st_size < of_encoder / 4


def test_the_description_names_what_the_graphs_have(exported: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    told = json.loads((exported / "export.json").read_text())
    assert told["patch"] == 8
    assert told["graphs"]["encode"]["outputs"]["tintok_patches"] == "(batch, rows, columns, 8)"
    for name, graph in told["graphs"].items():
        session = runtime.InferenceSession(exported / f"{name}.onnx")
        for side, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert [each.name for each in found] == list(graph[side])
            for each in found:
                told_shape = graph[side][each.name].strip("()").split(", ")
                assert len(told_shape) == len(each.shape)
                assert all(
                    str(ours) == theirs for ours, theirs in zip(each.shape, told_shape, strict=True) if isinstance(ours, int)
                )


def test_a_wrong_graph_is_found_out_and_nothing_remains(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_hundredth(graph: Any, program: Any, path: Path) -> Any:
        path.touch()
        return lambda images: [output + 0.01 for output in graph(images)]

    monkeypatch.setattr(module, "traced", lambda graph: None)
    monkeypatch.setattr(module, "write_torch", off_by_a_hundredth)
    with pytest.raises(HuvrError, match=r"encode: the exported graph differs from the network by 0\.01, more than 0\.001"):
        export(encoder=encoder, out=tmp_path / "deep" / "out", format="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_takes_its_size_for_a_constant_is_refused_in_one_line(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HUVR(replace(huvr.load(encoder).config, encoder="vit_tiny_patch16_dinov3_qkvb")).save(tmp_path / "net")
    monkeypatch.setattr(module, "rotation", RotaryEmbeddingDinoV3.get_embed)  # timm's own
    with pytest.raises(HuvrError, match=r"^encode: this network cannot be exported for any size as torch: [^\n]+$"):
        export(encoder=str(tmp_path / "net"), out=tmp_path / "out", format="torch")
    assert written(tmp_path) == ["net"]


def test_mistakes_are_told_before_any_work(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(HuvrError, match=r"exists already: choose a new or empty directory"):
            export(encoder=encoder, out=out)
    with pytest.raises(HuvrError, match=r"nowhere: no such file or directory"):
        export(encoder="nowhere", out=tmp_path / "out", format="torch")
    with pytest.raises(HuvrError, match="format"):
        call(export, ["--encoder", encoder, "--out", str(tmp_path / "out"), "--format", "caffe"])
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(HuvrError, match=r"format onnx needs onnxscript: pip install 'huvr\[onnx\]', or choose torch"):
        export(encoder=encoder, out=tmp_path / "out")
