"""Saving and loading networks: our own format, training checkpoints, and the released ones in all their layouts."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from huvr.errors import HuvrError, reason
from huvr.files import read_json, read_safetensors, read_torch, whole, write_safetensors
from huvr.model import HUVR, HUVRConfig
from huvr.released import check_tensors, from_released, save_released, to_released
from huvr.released_config import infer

__all__ = ["SHIPPED", "convert", "load", "refuse_other", "save", "save_released", "to_released"]

SHIPPED = "huvr-tiny"  # the trained network inside this package
_FORMAT, _VERSION = "huvr", 1
_KINDS = (
    "a directory with config.json and model.safetensors, a run directory with checkpoints/*.ckpt, "
    "a .ckpt, .safetensors or .pth file, or a Hugging Face repository 'owner/name'"
)
_NO_HUVR = "which is no HUVR network and has no TinToks"
HYPERNET_KEY, LIFT_KEY = "hypernet", "lift_config"  # what checkpoints of the other networks describe themselves under
_log = logging.getLogger(__name__)


def refuse_other(given: str, told: Mapping[str, Any], ours: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Raises HuvrError where ``given`` is told to hold another network than ours, beyond the fields ``free``.

    Some fields change what a network does and the shape of no tensor: heads, positions, frequencies.
    """
    plain = {name: [json.dumps(config.get(name, ours[name]), default=str) for config in (told, ours)] for name in ours}
    if names := [name for name, (theirs, own) in plain.items() if theirs != own and name not in free]:
        found = ", ".join(f"{name} is {told[name]}, not {ours[name]}" for name in names)
        raise HuvrError(f"{given}: another network than net: {found}")


def save(model: HUVR, directory: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, making the directory where needed.

    Raises:
        HuvrError: where that is not possible.
    """
    directory = Path(directory)
    config = {"format": _FORMAT, "version": _VERSION, **asdict(model.config)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole(directory / "model.safetensors") as weights, whole(directory / "config.json") as description:
        write_safetensors(tensors, weights)
        description.write_text(json.dumps(config, indent=2))


def load(source: str | Path = SHIPPED, device: str = "cpu") -> HUVR:
    """A trained network, in eval mode and fp32.

    Args:
        source: "huvr-tiny", the network that comes with the package; what :func:`save` wrote; a run directory (its last
            checkpoint) or a Lightning checkpoint of a pretraining, or of HUVR trained as a hyper-network, whose averaged
            weights are taken where it kept an average; a released checkpoint as a hub id ("owner/name"), directory,
            ``.safetensors`` or the released trainer's ``.pth``. Nothing in these files is ever executed.
        device: where to put it.

    Raises:
        HuvrError: for a source that is none of these, damaged, or of a network that is not supported.
    """
    with torch.inference_mode(False):  # weights made under it could never be descended through
        model = _open(locate(source))
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise HuvrError(f"device {device!r} cannot be used ({reason(error)})") from None


def convert(source: str | Path, out: str | Path, to: Literal["huvr", "released"] = "huvr") -> None:
    """Load ``source`` and write it to ``out``, a new or empty directory, in our format or the released one.

    With ``to="released"``, an ``out`` that ends in ``.pth`` is written in the released trainer's layout.

    Raises:
        HuvrError: as :func:`load` does, where ``out`` holds something, and for a network without a released form.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise HuvrError(f"{out} exists already: choose a new or empty directory")
    model = load(source)
    if to == "released":
        save_released(model, out)
        return
    with whole(out) as temporary:
        save(model, temporary)


def locate(source: str | Path) -> Path:
    """The file that holds the weights, fetched from the hub where ``source`` names a repository."""
    path = Path(source)
    if not path.exists():
        return _shipped() if str(source) == SHIPPED else _fetch(str(source))
    if path.is_file():
        return path
    if (path / "model.safetensors").exists():
        return path / "model.safetensors"
    # Lightning numbers further "last" checkpoints of the same folder: last.ckpt, last-v1.ckpt …
    checkpoints = sorted(path.glob("checkpoints/*.ckpt"), key=lambda file: (file.stem.startswith("last"), file.stat().st_mtime))
    if not checkpoints:
        raise HuvrError(f"{source}: no weights found here; expected {_KINDS}")
    return checkpoints[-1]


def _shipped() -> Path:
    return Path(str(files("huvr"))) / "shipped" / SHIPPED / "model.safetensors"


def _fetch(name: str) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or Path(name).suffix in _READERS:
        raise HuvrError(f"{name}: no such file or directory; expected {_KINDS}")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # whatever the network, the hub or its cache may come up with
        raise HuvrError(
            f"{name}: no such file or directory, and not to be had from the Hugging Face hub ({reason(error)}); "
            "a local directory with its config.json and model.safetensors works too"
        ) from None
    if not (folder / "model.safetensors").exists():
        raise HuvrError(f"{name}: this Hugging Face repository has no model.safetensors")
    return folder / "model.safetensors"


def _open(path: Path) -> HUVR:
    if path.suffix not in _READERS:
        raise HuvrError(f"{path}: not a file of weights; expected {_KINDS}")
    return _READERS[path.suffix](path)


def _open_safetensors(path: Path) -> HUVR:
    beside = path.with_name("config.json")
    entries = read_json(beside) if beside.exists() else {}
    tensors = read_safetensors(path)
    if entries.pop("format", None) != _FORMAT:
        if "inr.to_pixels.weight" in tensors:
            raise HuvrError(f"{path}: the config.json that huvr saved beside it is missing")
        return _open_released(tensors, entries, str(path))
    if (version := entries.pop("version", None)) != _VERSION:
        raise HuvrError(f"{beside}: version {version!r} of the format; this huvr reads version {_VERSION}")
    return _filled(_build(_config(entries, str(beside)), str(beside)), tensors, str(path))


def _open_checkpoint(path: Path) -> HUVR:
    content, where = read_torch(path), str(path)
    if "huvr_config" in content:
        tensors = _tensors(content.get("state_dict"), where)
        ours = {name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")}
        if ignored := sorted({name.partition(".")[0] for name in tensors if not name.startswith("net.")}):
            _log.warning("%s: ignored the tensors of %s, which are no part of the network", where, ", ".join(ignored))
        return _filled(_build(_config(content["huvr_config"], where), where), ours, where)
    if "model" in content:
        if ignored := sorted(content.keys() - {"model", "cfg"}):
            _log.warning("%s: ignored the training state: %s", where, ", ".join(ignored))
        settings = content.get("cfg") or {}
        if not isinstance(settings, dict):
            raise HuvrError(f"{where}: its cfg is a {type(settings).__name__}, expected a dictionary")
        return _open_released(_tensors(content["model"], where), settings, where)
    return _open_hypernet(content, where)


def _open_hypernet(content: Mapping[str, Any], where: str) -> HUVR:
    """The HUVR that a training of hyper-networks wrote; of anything else, a HuvrError says what it is."""
    described, lift = content.get(HYPERNET_KEY), content.get(LIFT_KEY)
    if isinstance(described, Mapping) and described.get("name") == "PatchwiseHUVR":
        tensors = _tensors(content.get("state_dict"), where)
        ours = {name.removeprefix("net.net."): tensor for name, tensor in tensors.items() if name.startswith("net.net.")}
        return _filled(_build(_config(described.get("config", {}).get("net", {}), where), where), ours, where)
    if isinstance(described, Mapping):
        raise HuvrError(f"{where}: a run of {described.get('name')}, {_NO_HUVR}; huvr probe takes it")
    if isinstance(lift, Mapping):
        raise HuvrError(f"{where}: a run of LIFT, {_NO_HUVR}" + ("; huvr probe takes it" if lift.get("dims") == 2 else ""))
    kind = "a Lightning checkpoint of something else" if "state_dict" in content else "a file of something else"
    raise HuvrError(f"{where}: {kind}; expected the checkpoint of a HUVR pretraining or of the released trainer")


_READERS = {".safetensors": _open_safetensors, ".ckpt": _open_checkpoint, ".pth": _open_checkpoint}


def _open_released(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> HUVR:
    model = _build(infer(tensors, settings, where), where)
    return _filled(model, from_released(tensors, model, where), where)


def _tensors(content: Any, where: str) -> dict[str, Tensor]:
    pairs = content.items() if isinstance(content, dict) else [(None, content)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in pairs):
        raise HuvrError(f"{where}: its weights are not a dictionary of tensors by name")
    return content


def _config(entries: Mapping[str, Any], where: str) -> HUVRConfig:
    try:
        config = HUVRConfig(**entries)
        first, second, third = config.inr_widths
        return replace(config, inr_widths=(first, second, third))  # JSON knows no tuples
    except (TypeError, ValueError) as error:
        raise HuvrError(f"{where}: not the config of a HUVR network ({error})") from None


def _build(config: HUVRConfig, where: str) -> HUVR:
    try:
        return HUVR(config)
    except HuvrError as error:
        raise HuvrError(f"{where}: {error}") from None
    except Exception as error:  # timm and torch answer impossible sizes in many ways
        raise HuvrError(f"{where}: no network can be built from its config ({type(error).__name__}: {error})") from None


def _filled(model: HUVR, tensors: Mapping[str, Tensor], where: str) -> HUVR:
    check_tensors(tensors, model.state_dict(), where)
    model.load_state_dict(dict(tensors))
    return model
