"""The tensors of the released HUVR checkpoints, to ours and back.

The whole correspondence is :func:`to_released`; reading asks it what the tensors should be and inverts it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from huvr.errors import HuvrError
from huvr.files import whole, write_safetensors, write_torch
from huvr.model import HUVR
from huvr.released_config import DISTILL, hub_config, trainer_config

# Our key → released key; the first that fits.
_NAMES = (
    (r"encoder\.vit\.(.+)\.mlp\.fc1_g", r"transformer_encoder.\1.mlp.w1"),
    (r"encoder\.vit\.(.+)\.mlp\.fc1_x", r"transformer_encoder.\1.mlp.w2"),
    (r"encoder\.vit\.(.+)\.mlp\.norm", r"transformer_encoder.\1.mlp.ffn_ln"),
    (r"encoder\.vit\.(.+)\.mlp\.fc2", r"transformer_encoder.\1.mlp.w3"),
    (r"encoder\.vit\.reg_token", r"transformer_encoder.register_tokens"),
    (r"encoder\.vit", r"transformer_encoder"),
    (r"decoder\.layers\.(\d+)\.norm1", r"transformer_decoder.layers.\1.0.norm"),
    (r"decoder\.layers\.(\d+)\.attn\.proj", r"transformer_decoder.layers.\1.0.fn.to_out.0"),
    (r"decoder\.layers\.(\d+)\.norm2?", r"transformer_decoder.layers.\1.1.norm"),
    (r"decoder\.layers\.(\d+)\.mlp\.fc1", r"transformer_decoder.layers.\1.1.fn.net.0"),
    (r"decoder\.layers\.(\d+)\.mlp\.fc2", r"transformer_decoder.layers.\1.1.fn.net.3"),
    (r"bottleneck\.down", r"dimension_downsample"),
    (r"bottleneck\.up", r"dimension_upsample"),
    (r"inr\.to_patch", r"wtoken_postfc.wb1_patch_postfc"),
    (r"inr\.to_global", r"wtoken_postfc.wb1_global_postfc"),
    (r"distill\.(encoder|decoder)_cls", r"wtoken_postfc.distill_\1"),
    (r"distill\.(encoder|decoder)_patches", r"wtoken_postfc.distill_\1_patches"),
)
# One table for weight and bias: a row per input and one for the bias, a column per output.
_TABLES = {**{f"inr.layers.{i}": f"base_params.wb{i}" for i in range(3)}, "inr.to_pixels": "base_params.cnn_wb0"}
_QKV = re.compile(r"decoder\.layers\.(\d+)\.attn\.qkv\.weight")  # fused in ours, to_q and to_kv there
_CONSTANT = ("encoder.mean", "encoder.std")
# The rope tables repeat in every block; a safetensors file keeps these.
_ROPE = "transformer_encoder.blocks.0.attn.rope"


def to_released(model: HUVR) -> dict[str, Tensor]:
    """The network's tensors by their released names, rope tables once, as in a released ``model.safetensors``.

    Raises:
        HuvrError: for a network that the released code cannot represent.
    """
    c = model.config
    if c.modulation != "released" or c.encoder is not None or c.positions != "scaled":
        raise HuvrError(
            "only networks with modulation 'released', the encoder built in and positions 'scaled' have a released form"
        )
    if others := [place for place in c.distill_dims if place not in DISTILL.values()]:
        raise HuvrError(f"the released form has no place for the distillation heads {', '.join(others)}")
    ours = {key: value.detach().cpu() for key, value in model.state_dict().items() if key not in _CONSTANT}
    side = c.image_size // c.patch
    sine, cosine = model.encoder.vit.rope.get_embed((side, side)).cpu().chunk(2, dim=-1)
    released = {f"{_ROPE}.freqs_cos": cosine, f"{_ROPE}.freqs_sin": sine}
    for key, value in ours.items():
        layer = key.rpartition(".")[0]
        if layer in _TABLES:
            released[_TABLES[layer]] = torch.cat([ours[f"{layer}.weight"].flatten(1).T, ours[f"{layer}.bias"][None]])
        elif _QKV.match(key):
            released |= zip(_attention_names(key), value.tensor_split([value.shape[1]]), strict=True)
        else:
            released[_name(key)] = value
    return {name: tensor.contiguous() for name, tensor in released.items()}


def from_released(tensors: Mapping[str, Tensor], model: HUVR, where: str) -> dict[str, Tensor]:
    """The state of ``model`` from released tensors, their rope tables once or repeated.

    Raises:
        HuvrError: for tensors that are missing, unknown or of a wrong shape, and for other positions than ours.
            ``where`` is what the message calls their source.
    """
    expected, copies = to_released(model), rope_copies(model.config.depth)
    for name, table in tensors.items():
        original = copies.get(name, name)
        if original.startswith(_ROPE) and original in expected:
            _check_positions(name, table, expected[original], where)
    tensors = {copies.get(name, name): tensor for name, tensor in tensors.items()}
    check_tensors(tensors, expected, where)

    def state(key: str, like: Tensor) -> Tensor:
        layer, _, kind = key.rpartition(".")
        if key in _CONSTANT:
            return like
        if layer in _TABLES:
            table = tensors[_TABLES[layer]]
            return table[-1] if kind == "bias" else table[:-1].T.reshape(like.shape)
        if _QKV.match(key):
            return torch.cat([tensors[name] for name in _attention_names(key)])
        return tensors[_name(key)]

    return {key: state(key, like) for key, like in model.state_dict().items()}


def save_released(model: HUVR, target: str | Path) -> None:
    """Write the released layout, whole or not at all.

    Args:
        model: with ``modulation="released"``.
        target: a path ending in ``.pth`` gets the trainer's layout, {"model", "cfg"} with repeated rope tables; any
            other is a new directory for ``config.json`` and ``model.safetensors`` as on the hub.
    """
    tensors, copies = to_released(model), rope_copies(model.config.depth)
    with whole(target) as temporary:
        if Path(target).suffix == ".pth":
            tensors |= {copy: tensors[original] for copy, original in copies.items()}
            write_torch({"model": tensors, "cfg": trainer_config(model.config)}, temporary)
        else:
            temporary.mkdir()
            (temporary / "config.json").write_text(json.dumps(hub_config(model.config), indent=2, sort_keys=True))
            write_safetensors(tensors, temporary / "model.safetensors", metadata=copies)


def rope_copies(depth: int) -> dict[str, str]:
    """Names of the repeated rope tables of an encoder, each with the name of the one that a safetensors file keeps."""
    places = ["transformer_encoder.rope"] + [f"transformer_encoder.blocks.{i}.attn.rope" for i in range(1, depth)]
    return {f"{place}.{table}": f"{_ROPE}.{table}" for place in places for table in ("freqs_cos", "freqs_sin")}


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Every expected tensor is found, in its shape, and no other; else a HuvrError that names them."""
    if unknown := sorted(found.keys() - expected.keys()):
        raise HuvrError(f"{where}: tensors that this network has no use for: {_some(unknown)}")
    if missing := sorted(expected.keys() - found.keys()):
        raise HuvrError(f"{where}: tensors are missing: {_some(missing)}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise HuvrError(f"{where}: {name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_positions(name: str, table: Tensor, expected: Tensor, where: str) -> None:
    # Loose enough for tables kept in half precision; other positions are off by far more, or no number.
    if table.shape != expected.shape or not (table.float() - expected).abs().max() < 1e-2:
        raise HuvrError(f"{where}: {name} holds other positions than the released ones, so the encoder would see wrong places")


def _name(key: str) -> str:
    for pattern, name in _NAMES:
        key, renamed = re.subn(rf"^{pattern}(?=\.|$)", name, key)
        if renamed:
            break
    return key


def _attention_names(key: str) -> list[str]:
    return [_QKV.sub(rf"transformer_decoder.layers.\1.0.fn.{part}.weight", key) for part in ("to_q", "to_kv")]
