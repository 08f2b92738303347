"""Hyper-networks in and out of the checkpoints of their training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from huvr import weights
from huvr.errors import HuvrError
from huvr.files import read_torch
from huvr.hypernets import lift_module
from huvr.hypernets.anr import ANR
from huvr.hypernets.ginr import GINR
from huvr.hypernets.interface import HyperINR
from huvr.hypernets.lift_images import LIFTImages
from huvr.hypernets.mae import MAE
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.transinr import TransINR
from huvr.released import check_tensors
from huvr.weights import HYPERNET_KEY, LIFT_KEY

NETWORKS: dict[str, type[HyperINR]] = {each.__name__: each for each in (TransINR, GINR, ANR, MAE, PatchwiseHUVR)}


def described(net: HyperINR) -> dict[str, Any]:
    """What :func:`rebuild` needs beside the weights: plain values only."""
    return {"name": type(net).__name__, "config": net.config}


def load(source: str | Path, device: str = "cpu") -> HyperINR:
    """A trained network, in eval mode.

    Args:
        source: the run directory or a checkpoint (``.ckpt``) of :class:`~huvr.hypernets.module.HyperNetwork`, or of LIFT's
            :class:`~huvr.hypernets.lift_module.MetaLearning` on images; or whatever else ``huvr.load`` opens, which becomes
            a :class:`~huvr.hypernets.patchwise.PatchwiseHUVR`.
        device: where to put it.

    Raises:
        HuvrError: for a source that is none of these, or damaged.
    """
    path = weights.locate(source)
    net = _other_than_huvr(path) or PatchwiseHUVR.of(weights.load(path, device))
    return net.to(device).eval()


def _other_than_huvr(path: Path) -> HyperINR | None:
    """The network of a checkpoint that ``huvr.load`` does not open; None of other files."""
    content = read_torch(path) if path.suffix == ".ckpt" else {}
    if HYPERNET_KEY in content:
        return rebuild(content, str(path))
    if LIFT_KEY in content:
        return LIFTImages(lift_module.rebuild(content, str(path)), tuple(content.get(lift_module.SIZE_KEY, ())))
    return None


def rebuild(content: Mapping[str, Any], where: str) -> HyperINR:
    """The network of what a checkpoint holds; ``where`` names it in errors."""
    description = content.get(HYPERNET_KEY)
    if not isinstance(description, Mapping) or description.get("name") not in NETWORKS:
        raise HuvrError(f"{where}: not the checkpoint of one of the hyper-networks {', '.join(NETWORKS)}")
    net = build(description["name"], description.get("config", {}), where)
    pairs = content.get("state_dict", {})
    tensors = {name.removeprefix("net."): value for name, value in pairs.items() if isinstance(value, Tensor)}
    check_tensors(tensors, net.state_dict(), where)
    net.load_state_dict(tensors)
    return net


def build(name: str, config: Mapping[str, Any], where: str) -> HyperINR:
    """A network by the name of its class and plain values, which are checked against its signature."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NETWORKS[name], "net")
    try:
        return parser.instantiate_classes(parser.parse_object({"net": dict(config)})).net
    except HuvrError as error:
        raise HuvrError(f"{where}: {error}") from None
    except (ArgumentError, TypeError, KeyError, ValueError) as error:
        raise HuvrError(f"{where}: not the config of a {name} ({' '.join(str(error).split())})") from None
