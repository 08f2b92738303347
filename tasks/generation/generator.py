"""A trained generator with the HUVR network, or whatever else its latents come from, that draws what it generates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from huvr.errors import HuvrError
from huvr.files import read_torch

from ..base import Precision
from .codec import Codec, open_codec
from .diffusion import Diffusion
from .dit import DiT, DiTConfig
from .flow import Flow
from .objective import Objective
from .sampling import Noise, Sampling, guided
from .space import LatentSpace

ObjectiveName = Literal["diffusion", "flow"]
KEY, VERSION = "huvr_generator", 1  # of what a checkpoint says of its generator


def make_objective(name: ObjectiveName) -> Objective:
    if name not in get_args(ObjectiveName):
        raise HuvrError(f"objective {name!r}: choose one of {', '.join(get_args(ObjectiveName))}")
    return Diffusion() if name == "diffusion" else Flow()


def make_network(config: DiTConfig, objective: Objective, space: LatentSpace) -> DiT:
    """An untrained network for these latents."""
    return DiT(config, space.grid, space.dim, len(space.classes), objective.outputs, space.global_token)


class Generator:
    """Labels to pictures.

    Args:
        network: a trained DiT.
        objective: the one it learned by.
        space: the latents it learned.
        codec: what they come from, for drawing.
        unconditional: whether it learned to do without labels too.
    """

    def __init__(self, network: DiT, objective: Objective, space: LatentSpace, codec: Codec, unconditional: bool = True) -> None:
        self.network, self.objective, self.space, self.codec = network, objective, space, codec
        self.unconditional = unconditional

    def to(self, device: torch.device | str) -> Generator:
        self.network.to(device)
        self.codec.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.network.embed.weight.device

    def sample(
        self, numbers: Sequence[int], labels: Sequence[int] | None, sampling: Sampling, seed: int = 0, bar: tqdm | None = None
    ) -> Tensor:
        """Latents ``(B, N, d)`` of new images.

        Args:
            numbers: of the images, which with the seed decide about their noise.
            labels: of each; None for none.
            sampling: how.
            seed: any whole number.
            bar: told of every image at every step.

        Raises:
            HuvrError: for guidance without classes or by a network that knows no picture without one, and a sampler that
                does not fit.
        """
        classes = len(self.space.classes)
        if sampling.guidance != 1 and (classes == 0 or labels is None):
            there = f"none of the {classes} is given" if classes else "this generator knows none: leave it at 1"
            raise HuvrError(f"guidance {sampling.guidance}: it needs classes to guide to, and {there}")
        if classes and not self.unconditional and (labels is None or sampling.guidance != 1):
            raise HuvrError("trained with label_dropout 0, the generator draws pictures of classes only, without guidance")
        known = torch.tensor([classes] * len(numbers) if labels is None else list(labels), device=self.device)
        predict = guided(self.network, known if classes else None, classes, sampling)
        draw = Noise(seed, numbers, self.space.shape, self.device)
        steps = self.objective.trajectory(predict, draw, *sampling.plan(self.objective))
        for latents in steps:  # noqa: B007 (the last are the sample)
            if bar is not None:
                bar.update(len(numbers))
        return latents

    def draw(self, latents: Tensor, scale: int = 1) -> Tensor:
        """Latents ``(B, N, d)`` to pictures ``(B, 3, H, W)`` in [0, 1], drawn ``scale`` times as large."""
        return self.codec.draw(self.space.denormalise(latents), scale).clamp(0, 1)

    @torch.inference_mode()
    def pictures(
        self, count: int, labels: Sequence[int] | None, sampling: Sampling, seed: int = 0, batch_size: int = 64, scale: int = 1,
        precision: Precision = "fp32",
    ) -> Iterator[Tensor]:  # fmt: skip
        """Pictures 0 to ``count - 1``, ``(3, H, W)`` in [0, 1], one by one behind a progress bar.

        They are the same whatever the size of a batch.
        """
        steps = sampling.plan(self.objective)[1]
        with tqdm(total=count * steps, desc="pictures", unit_scale=1 / steps, disable=None) as bar:
            for first in range(0, count, batch_size):
                numbers = range(first, min(first + batch_size, count))
                part = None if labels is None else labels[first : first + batch_size]
                with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    latents = self.sample(numbers, part, sampling, seed, bar)
                yield from self.draw(latents, scale)

    def labels(self, classes: str) -> list[int]:
        """Class ids or names, separated by commas, to labels.

        Raises:
            HuvrError: for one that there is not; it lists some.
        """
        names = self.space.classes
        if not names:
            raise HuvrError(f"classes {classes}: this generator knows none; leave them out")
        found = []
        for each in (part.strip() for part in classes.split(",")):
            # Names first: those of a folder of numbered classes are no labels, since "10" comes before "2" there.
            label = names.index(each) if each in names else int(each) if each.isdecimal() else len(names)
            if label >= len(names):
                some = ", ".join(itertools.islice(names, 10)) + (", …" if len(names) > 10 else "")
                raise HuvrError(f"class {each!r}: there are 0 to {len(names) - 1}, or by name {some}")
            found.append(label)
        return found


def describe(space: LatentSpace, config: DiTConfig, objective: ObjectiveName, unconditional: bool) -> dict[str, Any]:
    """What a checkpoint says of its generator, in plain values."""
    told = {"version": VERSION, "space": space.plain(), "net": asdict(config), "objective": objective}
    return {KEY: told | {"unconditional": unconditional}}


def load_generator(source: str | Path, encoder: str | None = None, device: str = "cpu") -> Generator:
    """A trained generator; its averaged weights, where training kept an average.

    Args:
        source: a run of ``huvr fit``, or a checkpoint of one.
        encoder: whatever :func:`open_codec` opens; None takes the one that the checkpoint names.
        device: where to put it.

    Raises:
        HuvrError: for a file that is none, and an encoder that is not the one whose TinToks it learned.
    """
    path = find_file(Path(source))
    content = read_torch(path)
    try:
        told = content[KEY]
        if told["version"] != VERSION:
            raise HuvrError(f"{path}: version {told['version']!r} of a generator; this huvr reads version {VERSION}")
        space, config, name = LatentSpace.from_plain(told["space"]), DiTConfig(**told["net"]), told["objective"]
        unconditional = told.get("unconditional", True)
        weights = {key.removeprefix("net."): value for key, value in content["state_dict"].items() if key.startswith("net.")}
    except (KeyError, TypeError, AttributeError):
        raise HuvrError(f"{path}: not the checkpoint of a generator (huvr fit --config generate/…)") from None
    objective = make_objective(name)
    network = make_network(config, objective, space)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise HuvrError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    codec = open_codec(encoder or space.encoder)
    space.check(codec.fingerprint, codec.source)
    return Generator(network.eval().requires_grad_(False), objective, space, codec, unconditional).to(device)


def find_file(source: Path) -> Path:
    """The checkpoint, of a run folder the last one."""
    if source.is_file():
        return source
    found = sorted(source.glob("checkpoints/*.ckpt"), key=lambda file: (file.stem.startswith("last"), file.stat().st_mtime))
    if not found:
        wanted = "no checkpoints in this folder" if source.is_dir() else "no such file or folder"
        raise HuvrError(f"generator {source}: {wanted}; expected a run of huvr fit --config generate/…, or a .ckpt file of one")
    return found[-1]
