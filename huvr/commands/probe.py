"""``huvr probe``: a task on the tokens of a frozen encoder.

A task is a LightningModule that an installed package offers under the entry-point group ``huvr.tasks``: a
``huvr.tasks.base.FrozenEncoderTask``, whose parameter ``encoder`` is an ``EncoderConfig`` and which the default data are made
for, or any other, with ``--data`` of its own. One with a ``training_step`` is trained; then
it is tested, at its best checkpoint where a ModelCheckpoint monitors something. What it logs in ``test_step`` goes into
``record.json`` of the run folder, beside what its attribute ``details``, a dictionary, holds. The run folder is named after
the options that bear on the figures.

The protocol of task NAME is the shipped config ``probe/NAME.yaml``, and of another package's the file ``NAME.yaml`` beside the
module, if there is one; ``--config`` changes it, and options change both.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from huvr.commands import tasks
from huvr.commands.arguments import read_yaml
from huvr.commands.calm import calm
from huvr.commands.checkpoints import find_checkpoint, goes_on
from huvr.commands.training import TrainingCLI, classes_named, only_one, plain_endings
from huvr.errors import HuvrError
from huvr.files import read_json, whole

USAGE = """\
usage: huvr probe --task NAME [--encoder SOURCE] [--tokens KIND] [--config NAME] [--data.root FOLDER] [--KEY VALUE ...]

  --task NAME        one of: {tasks}
  --encoder SOURCE   huvr-tiny, the network that comes with huvr, unless given; whatever else huvr.load opens, or timm:NAME
                     (--model.encoder.weights FILE for weights of your own)
  --tokens KIND      standard, tintok, decoder, or pca<d> such as pca32
  --generator RUN    of the task generation, in place of an encoder: a run of huvr fit --config generate/NAME.yaml
  --config NAME      a YAML file over the task's own protocol, the shipped config probe/NAME.yaml

  huvr probe --task NAME --help   every option of a task"""
SHORT = {
    "encoder": "--model.encoder.source",
    "tokens": "--model.encoder.tokens",
    "generator": "--model.generator",
    "root": "--data.root",
}

# options that bear on no figure, or, those of the trainer, belong to a training that --ckpt_path auto is to go on with
UNNAMED = re.compile(r"trainer(\..*)?|run|ckpt_path|data\.(workers|cache)")
# … of which these change the figures
OF_THE_TRAINER = re.compile(r"trainer\.(max_.*|limit_.*|precision|accumulate_grad_batches|gradient_clip_.*)")


def run(arguments: Sequence[str]) -> None:
    """Carry out one probe, and write its record.

    Raises:
        HuvrError: for a task, options, an encoder or data that do not fit.
    """
    calm()
    given, rest = shortcuts(arguments)
    if given.task is None:
        if {"-h", "--help"} & {*rest}:
            print(USAGE.format(tasks=", ".join(tasks.installed())))
            return
        raise HuvrError(f"which task? --task with one of {', '.join(tasks.installed())}")
    entry = tasks.find(given.task)
    start = time.perf_counter()
    try:
        cli = ProbeCLI(entry, ["--run", run_folder(given, rest), *rest, *lengthened(given)])
        refuse_to_replace(cli)
        with only_one(Path(cli.config.run), cli.trainer):
            metrics = measured(cli)
            if cli.trainer.is_global_zero:
                write_record(cli, entry, metrics, time.perf_counter() - start)
    except MisconfigurationException as error:
        raise HuvrError(str(error)) from None


def shortcuts(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that every task has, and all the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("task", "encoder", "tokens", "generator"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--data.root", dest="root")
    try:
        return parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise HuvrError(str(error)) from None


def lengthened(given: argparse.Namespace) -> list[str]:
    """The short options as those of model and data."""
    return [f"{long}={getattr(given, name)}" for name, long in SHORT.items() if getattr(given, name) is not None]


def run_folder(given: argparse.Namespace, rest: Sequence[str]) -> str:
    """``runs/probe/TASK-ENCODER-TOKENS-DATA-OTHERS``: different probes neither overwrite each other nor go on from each other."""
    parts = (given.task, given.encoder, given.generator, given.tokens, given.root)
    names = [shortened(part) for part in parts if part]
    return "runs/probe/" + "-".join([*names, *others(rest)])


def shortened(part: str) -> str:
    """What a name or path has of letters and digits, at most its end; with a hash where that does not tell it from all others."""
    name = re.sub(r"[^\w.]+", "-", part).strip("-.")
    return name if name == part and len(name) <= 60 else f"{name[-60:]}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def others(rest: Sequence[str]) -> list[str]:
    """The options but those ``UNNAMED``, in their order: ``["data.crop=32,model.k=5"]``, or a hash where that is long."""
    options: list[str] = []
    for argument in rest:
        if re.match("--?[a-zA-Z]", argument):
            options.append(argument.lstrip("-").replace(".init_args.", "."))
        elif options:
            options[-1] += f"={argument}"
    text = ",".join(option for option in options if not UNNAMED.fullmatch(option.partition("=")[0].rstrip("+")))
    plain = len(text) <= 60 and re.fullmatch(r"[\w.,=+-]*", text)
    return [text if plain else hashlib.sha256(text.encode()).hexdigest()[:8]] if text else []


def protocol(entry: EntryPoint) -> list[str]:
    """The config that comes with a task that can be imported, where there is one."""
    ours = tasks.package(entry) == "huvr"
    folder = Path(str(files("huvr.configs")), "probe") if ours else Path(import_module(entry.module).__file__ or "").parent
    config = folder / f"{entry.name}.yaml"
    return ["--config", str(config)] if config.is_file() else []


class ProbeCLI(TrainingCLI):
    """The options of a task, of labelled data by default, and of a trainer."""

    def __init__(self, entry: EntryPoint, arguments: Sequence[str]) -> None:
        try:
            task = entry.load()
        except (ImportError, AttributeError) as error:
            raise HuvrError(f"task {entry.name} of {tasks.package(entry)} cannot be imported: {error}") from error
        if not (isinstance(task, type) and issubclass(task, LightningModule)):
            raise HuvrError(f"task {entry.name} of {tasks.package(entry)}: {entry.value} is no LightningModule")
        self.entry = entry
        super().__init__("probe", [*protocol(entry), *arguments])

    def classes_of(self, arguments: Sequence[str]) -> dict[str, str]:
        data = {"data": "huvr.tasks.features.Features"}
        return data | classes_named(arguments) | {"model": f"{self.entry.module}.{self.entry.attr}"}


def refuse_to_replace(cli: ProbeCLI) -> None:
    """Raise a HuvrError where the run folder holds the record of a probe with other options that this one does not go on with."""
    run, start, trains = Path(cli.config.run), cli.config.ckpt_path, is_overridden("training_step", cli.model)
    if not (run / "record.json").exists() or (trains and goes_on(run, start)):
        return
    before, now = read_json(run / "record.json").get("config"), yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    found = (
        (name, value) for name, value in differing(before, now) if OF_THE_TRAINER.fullmatch(name) or not UNNAMED.fullmatch(name)
    )
    if (other := next(found, None)) is not None:
        raise HuvrError(
            f"run folder {run} holds the record of a probe with another {other[0]} ({other[1]}): "
            + ("--ckpt_path auto goes on with it; " if trains else "") + "to keep both choose another --run, or remove it"
        )  # fmt: skip


def differing(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The options of two configs that differ, ``data.crop``, with what they were before; one that only one knows is a new one."""
    known = [*before.keys() & now.keys()] if isinstance(before, dict) and isinstance(now, dict) else []
    if known and not name.endswith(".arguments"):  # which are free, not options
        for key in sorted(known):
            yield from differing(before[key], now[key], f"{name}.{key}".removeprefix(".").removesuffix(".init_args"))
    elif settled(before) != settled(now):
        yield name, before


def settled(value: Any) -> Any:
    """A path that exists in full; anything else as it is."""
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


def measured(cli: ProbeCLI) -> dict[str, float]:
    """Train what is to be trained, test, and return what the test logged."""
    trainer, task, data = cli.trainer, cli.model, cli.datamodule
    best = None
    if is_overridden("training_step", task):
        limits = cli.config.trainer
        if limits.max_epochs is None and limits.max_steps == -1 and limits.max_time is None:
            raise HuvrError(f"task {cli.entry.name} trains: say for how long, by --trainer.max_epochs or --trainer.max_steps")
        checkpoint = find_checkpoint(cli.config.ckpt_path, Path(cli.config.run), training=True)
        with plain_endings(trainer, checkpoint):
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        keepers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint) and each.monitor]
        best = keepers[0].best_model_path if keepers else None
    with plain_endings(trainer, Path(best) if best else None):
        found = trainer.test(task, datamodule=data, ckpt_path=best or None, weights_only=True, verbose=False)
    return {name: value for metrics in found for name, value in metrics.items()}


def write_record(cli: ProbeCLI, entry: EntryPoint, metrics: dict[str, float], seconds: float) -> None:
    """``record.json`` of the run folder; the metrics are printed too."""
    folder = Path(cli.config.run)
    config = read_yaml(folder / "config_probe.yaml")
    encoder = config["model"].get("init_args", {}).get("encoder") or {}
    encoder = encoder if isinstance(encoder, dict) else {"source": str(encoder)}  # of a task that is no FrozenEncoderTask
    record: dict[str, Any] = {
        "task": entry.name,
        "package": tasks.package(entry),
        "encoder": encoder.get("source"),
        "tokens": encoder.get("tokens"),
        "version": version("huvr"),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
        "headline": getattr(cli.model, "headline", None),
        "lower_is_better": getattr(cli.model, "lower_is_better", False),
        "metrics": metrics,
        **getattr(cli.model, "details", {}),
        "config": config,
    }
    with whole(folder / "record.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}{value:10.3f}")
    for name, rival in record.get("rivals", {}).items():
        print(f"{name}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in rival["metrics"].items()))
    print(f"record: {folder / 'record.json'}")


def commit() -> str | None:
    """The commit of huvr, marked when the tree had changes; None where it does not run from its repository."""
    here = Path(__file__).parent
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", "training.py"], cwd=here, capture_output=True, check=True)
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
