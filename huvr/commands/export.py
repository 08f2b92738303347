"""``huvr export``: a network as two graphs that run without huvr."""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from huvr.errors import HuvrError, reason
from huvr.files import whole
from huvr.model import HUVR, Tokens
from huvr.weights import SHIPPED, load

Format = Literal["onnx", "torch"]
Call = Callable[..., Any]
TOLERANCE = 1e-3  # of what a graph may differ from the network by; fp32 differs by some 1e-6


class Encode(nn.Module):
    """Images ``(B, 3, H, W)`` to standard tokens and TinToks, patches as ``(B, h, w, D)``."""

    file = "encode"
    inputs = ("images",)
    outputs = ("cls", "patches", "tintok_cls", "tintok_patches")

    def __init__(self, model: HUVR) -> None:
        super().__init__()
        self.model = without(model, "decoder", "inr", "distill")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens = self.model.encode(images)
        tintoks = self.model.compress(tokens)
        return tokens.cls, tokens.patches.unflatten(1, tokens.grid), tintoks.cls, tintoks.patches.unflatten(1, tintoks.grid)

    def example(self, batch: int, rows: int, columns: int) -> tuple[Tensor, ...]:
        return (torch.rand(batch, 3, rows * self.model.patch, columns * self.model.patch),)

    def dimensions(self, batch: Dim, rows: Dim, columns: Dim) -> tuple[dict[int, Dim], ...]:
        return ({0: batch, 2: self.model.patch * rows, 3: self.model.patch * columns},)


class Reconstruct(nn.Module):
    """TinToks ``(B, d)`` and ``(B, h, w, d)`` to pictures ``(B, 3, h * patch, w * patch)``, unclamped."""

    file = "reconstruct"
    inputs = ("tintok_cls", "tintok_patches")
    outputs = ("picture",)

    def __init__(self, model: HUVR) -> None:
        super().__init__()
        self.model = without(model, "encoder", "distill")

    def forward(self, tintok_cls: Tensor, tintok_patches: Tensor) -> Tensor:
        grid = (tintok_patches.shape[1], tintok_patches.shape[2])
        return self.model.render(self.model.expand(Tokens(tintok_cls, tintok_patches.flatten(1, 2), grid)))

    def example(self, batch: int, rows: int, columns: int) -> tuple[Tensor, ...]:
        numbers = self.model.config.tintok_dim
        return torch.randn(batch, numbers), torch.randn(batch, rows, columns, numbers)

    def dimensions(self, batch: Dim, rows: Dim, columns: Dim) -> tuple[dict[int, Dim], ...]:
        return {0: batch}, {0: batch, 1: rows, 2: columns}


def without(model: HUVR, *parts: str) -> HUVR:
    """A copy that lacks modules: a graph holds the weights of all that it was given."""
    lean = copy.deepcopy(model)
    for part in parts:
        delattr(lean, part)
    return lean


def export(*, encoder: str = SHIPPED, out: Path, format: Format = "onnx") -> None:
    """Write a network as two graphs that run without huvr: OUT/encode and OUT/reconstruct, described in OUT/export.json.

    The first makes tokens and TinToks of images, the second pictures of TinToks. Batch and size are free; height and
    width are multiples of the patch. Both graphs are run and compared with the network before they are put in place.

    Args:
        encoder: the network that comes with huvr, or whatever else huvr.load opens: a run, a directory, a checkpoint, a
            Hugging Face repository.
        out: new or empty directory to write.
        format: "onnx", for ONNX Runtime and others, or "torch", for torch.export.load.

    Raises:
        HuvrError: for an encoder that computes with the size of its images outside of the graph.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise HuvrError(f"{out} exists already: choose a new or empty directory")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if format == "onnx" and missing:
        raise HuvrError(f"format onnx needs {', '.join(missing)}: pip install 'huvr[onnx]', or choose torch")
    model = load(encoder).requires_grad_(False)
    graphs = Encode(model), Reconstruct(model)
    with whole(out) as temporary:
        temporary.mkdir()
        for graph in graphs:
            path = temporary / f"{graph.file}.{'onnx' if format == 'onnx' else 'pt2'}"
            try:
                written = (write_onnx if format == "onnx" else write_torch)(graph, traced(graph), path)
                found = difference(graph, written)
            except (HuvrError, OSError):
                raise
            except Exception as error:  # what torch and ONNX Runtime raise for sizes that a network takes for constants
                problem = f"this network cannot be exported for any size as {format}: {reason(error)}"
                raise HuvrError(f"{graph.file}: {problem}") from error
            print(f"{out / path.name}: differs from PyTorch by {found:.1g}")
        (temporary / "export.json").write_text(json.dumps(description(model, encoder, format), indent=1) + "\n")


def traced(graph: Encode | Reconstruct) -> ExportedProgram:
    """The graph for any batch, and any grid from 2x2: torch takes a side of 1 in an example for a constant."""
    with patch.object(RotaryEmbeddingDinoV3, "get_embed", rotation):
        return torch.export.export(graph, graph.example(2, 3, 5), dynamic_shapes=free(graph))


def rotation(rope: Any, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Sines and cosines ``(rows * columns, 2 D)`` of DINOv3's positions; timm's own ``get_embed`` makes the grid a constant."""
    sides = [(torch.arange(side, device=rope.periods.device) + (0.5 + rope.grid_offset)) / side * 2 - 1 for side in shape]
    coordinates = torch.stack(torch.meshgrid(*sides, indexing=rope.grid_indexing), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * coordinates[..., None] / rope.periods).flatten(1)
    angles = torch.cat((angles, angles), dim=-1) if rope.rotate_half else angles.repeat_interleave(2, dim=-1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)


def free(graph: Encode | Reconstruct) -> tuple[dict[int, Dim], ...]:
    return graph.dimensions(Dim("batch"), Dim("rows", min=2), Dim("columns", min=2))


def write_torch(graph: Encode | Reconstruct, program: ExportedProgram, path: Path) -> Call:
    """Write the program; returns the call of what was written."""
    buffer = io.BytesIO()  # torch's own writer ends the process when the disk is full
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())
    return torch.export.load(path).module()


def write_onnx(graph: Encode | Reconstruct, program: ExportedProgram, path: Path) -> Call:
    """The same as ONNX; weights beyond 1.5 GB lie in a file beside."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name: ")  # two inputs with the same batch
        converted = torch.onnx.export(
            program, input_names=graph.inputs, output_names=graph.outputs, dynamic_shapes=free(graph), dynamo=True, verbose=False
        )
    converted.save(path)  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def call(*inputs: Tensor) -> list[Tensor]:
        fed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(graph.outputs, fed)]

    return call


def difference(graph: Encode | Reconstruct, call: Call) -> float:
    """The greatest between what was written and the network, on another batch and grid than it was made with.

    Raises:
        HuvrError: for more than rounding.
    """
    inputs = graph.example(1, 6, 4)
    pairs = zip(as_tuple(call(*inputs)), as_tuple(graph(*inputs)), strict=True)
    found = max((ours - expected).abs().max().item() for ours, expected in pairs)
    if not found <= TOLERANCE:  # NaN neither
        raise HuvrError(f"{graph.file}: the exported graph differs from the network by {found:.1g}, more than {TOLERANCE}")
    return found


def as_tuple(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def description(model: HUVR, encoder: str, format: Format) -> dict[str, Any]:
    """``export.json``: what goes in and comes out."""
    patch, image = model.patch, f"(batch, 3, {model.patch} * rows, {model.patch} * columns)"
    sizes = {"cls": model.encoder.dim, "patches": model.encoder.dim} | dict.fromkeys(Reconstruct.inputs, model.config.tintok_dim)
    shapes = {
        name: f"(batch, {size})" if name.endswith("cls") else f"(batch, rows, columns, {size})" for name, size in sizes.items()
    }
    shapes |= {"images": image, "picture": image}
    return {
        "huvr": version("huvr"),
        "encoder": encoder,
        "format": format,
        "patch": patch,
        "images": f"float32 RGB in [0, 1]; normalised inside the graph; sides are multiples of {patch}, from {2 * patch}",
        "picture": "float32 RGB, [0, 1] where it is right, not clamped",
        "patches": "row by row, rows = height / patch, columns = width / patch",
        "graphs": {
            graph.file: {side: {name: shapes[name] for name in getattr(graph, side)} for side in ("inputs", "outputs")}
            for graph in (Encode, Reconstruct)
        },
    }
