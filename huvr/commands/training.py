"""``huvr fit | validate | test | predict``: Lightning's Trainer on the module and the data that a config names.

A config is one experiment::

    model:
      class_path: huvr.pretrain.Pretraining     # any LightningModule; this one is the default
      init_args: {…}
    data:
      class_path: huvr.data.Images              # any LightningDataModule; this one is the default
      init_args: {…}
    trainer: {max_steps: …, precision: …, callbacks: […]}

Every value can be given on the command line too, without ``init_args``: ``--model.net.tintok_dim 8``.

All that a run writes lies in one folder, ``runs/NAME`` for ``--config NAME.yaml`` (the first of several) or
wherever ``run:`` in the config or ``--run`` says: ``config_VERB.yaml`` as it was run, TensorBoard's events, and
``checkpoints/last.ckpt``. A config that wants other checkpoints lists a ModelCheckpoint of its own under
``trainer.callbacks``, without ``dirpath``; ``save_last: true`` keeps ``last.ckpt`` up to date. Steps of ``fit`` without
a finite loss are skipped; a ``huvr.safety.SkipNonFinite`` under ``trainer.callbacks`` says how many in a row are too many.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from huvr.commands.arguments import ConfigByName, find_config, parse, read_yaml
from huvr.commands.calm import calm
from huvr.errors import HuvrError
from huvr.files import read_torch
from huvr.safety import LastCheckpoint, SkipNonFinite, WholeCheckpoints

DEFAULTS = {"model": "huvr.pretrain.Pretraining", "data": "huvr.data.Images"}
DESCRIPTION = """\
Runs Lightning's Trainer on the module and the data that a config names. Every value of a config is an option too:
--model.net.tintok_dim 8, --data.root FOLDER, --trainer.max_steps 100. For those of model and data, see --model.help
and --data.help.
"""


def run(verb: str, arguments: Sequence[str]) -> None:
    """Carry out one method of the Trainer.

    Raises:
        HuvrError: for options, a checkpoint or a machine that do not fit.
    """
    calm()
    try:
        cli = TrainingCLI(verb, arguments)
    except MisconfigurationException as error:
        raise HuvrError(str(error)) from None
    options = cli.config
    checkpoint = find_checkpoint(options.ckpt_path, Path(options.run), may_be_absent=verb == "fit")
    rank_zero_info(f"run folder: {options.run}")
    method = getattr(cli.trainer, verb)
    extra = {"return_predictions": False} if verb == "predict" else {}
    try:
        method(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True, **extra)
    except SystemExit as done:
        if done.code and cli.trainer.state.status == TrainerStatus.INTERRUPTED:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise HuvrError(str(error)) from None
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker (pid"):  # torch notices at any point of a step
            raise HuvrError(
                f"a process that loads images died ({str(error).rstrip('. ')}), often for want of memory, of which fewer "
                "data.workers take less; --ckpt_path auto goes on from the last checkpoint"
            ) from error
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise HuvrError(f"checkpoint {checkpoint}: not of this model: {' '.join(str(error).split())}") from error


def find_checkpoint(name: str | None, run: Path, may_be_absent: bool) -> Path | None:
    """The checkpoint file to start from: ``name`` itself, or for "auto" the newest intact one of the run.

    After a SLURM requeue that is Lightning's ``hpc_ckpt_*`` file, which its own ``last`` overlooks. Checkpoints of
    other names are turned to where there is no intact one of these two. A damaged one is warned of.

    Raises:
        HuvrError: for a file that is no checkpoint of ours, or where "auto" finds none and one is needed or
            finds damaged ones only, which a fresh start would overwrite.
    """
    if name is None:
        return None
    if name != "auto":
        check_checkpoint(Path(name))
        return Path(name)
    latest = {*run.glob("hpc_ckpt_*.ckpt"), *run.glob("checkpoints/last.ckpt")}
    found = [path for path in latest.union(run.glob("checkpoints/*.ckpt")) if path.is_file()]
    for path in sorted(found, key=lambda path: (path in latest, path.stat().st_mtime), reverse=True):
        try:
            check_checkpoint(path)
        except HuvrError as error:
            rank_zero_warn(f"{error}; it is passed over")
        else:
            return path
    if found:
        raise HuvrError(f"ckpt_path auto: no checkpoint in {run} can be read; to start anew, remove them or choose another run")
    if not may_be_absent:
        raise HuvrError(f"ckpt_path auto: no checkpoint in {run}")
    return None


def check_checkpoint(path: Path) -> None:
    """Raise a HuvrError unless the file is a checkpoint of training."""
    if not path.is_file():
        raise HuvrError(f"checkpoint {path}: no such file (expected a .ckpt file of huvr fit, or auto)")
    try:
        content = read_torch(path)
    except HuvrError:
        content = {}
    if "pytorch-lightning_version" not in content:
        raise HuvrError(f"checkpoint {path}: not a .ckpt file of huvr fit")


def classes_named(arguments: Sequence[str]) -> dict[str, str]:
    """The classes of model and data that a config or the command line names, as far as they can be imported."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    for key in DEFAULTS:
        parser.add_argument(f"--{key}")
    try:
        given, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return {}  # the parser of all options will say what is wrong
    found: dict[str, Any] = {}
    for content in (read_yaml(find_config(name)) for name in given.config):
        found |= {key: content[key].get("class_path") for key in DEFAULTS if isinstance(content.get(key), dict)}
    found |= {key: getattr(given, key) for key in DEFAULTS if getattr(given, key)}
    return {key: path for key, path in found.items() if isinstance(path, str) and importable(path)}


def importable(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except (ImportError, ValueError):
        return False


class TrainingCLI(LightningCLI):
    """LightningCLI with our run folder, our configs and our errors.

    It builds model, data and trainer (``run=False``); which method runs is up to the caller. So Lightning
    never merges the hyper-parameters saved in ``--ckpt_path FILE`` into the options, where they would
    silently beat the config and the command line.
    """

    def __init__(self, verb: str, arguments: Sequence[str]) -> None:
        self.verb, self.arguments = verb, list(arguments)
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"config_filename": f"config_{verb}.yaml", "overwrite": True},
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"huvr {verb}",
                "usage": f"huvr {verb} [--config NAME] [--run FOLDER] [--ckpt_path FILE] [--KEY VALUE ...]",
                "description": DESCRIPTION,
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            auto_configure_optimizers=False,
            args=self.arguments,
            run=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigByName, help="A YAML file, or the name of a shipped config.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", default=f"runs/{self.verb}", help="Folder of this run; runs/NAME with a config NAME.yaml.")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.add_argument(
            "--ckpt_path", type=str | None, help='Checkpoint to start from: a file, or "auto" for the newest of this run, if any.'
        )
        # A class that is named replaces the default here already, or it would inherit defaults of parameters of the same name.
        classes = DEFAULTS | classes_named(self.arguments)
        parser.set_defaults({key: {"class_path": path} for key, path in classes.items()})

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        self.config = parse(parser, args)
        seed = self.config.seed_everything
        if not 0 <= seed < 2**32:
            raise HuvrError(f"seed_everything {seed}: expected 0 to {2**32 - 1}")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
        if config["logger"] is None or config["logger"] is True:
            config["logger"] = TensorBoardLogger(config["default_root_dir"], name="", version="")
        listed = config["callbacks"] or []
        listed = listed if isinstance(listed, list) else [listed]
        if config["enable_checkpointing"] is not False and not any(isinstance(each, ModelCheckpoint) for each in listed):
            callbacks = [*callbacks, LastCheckpoint()]
        if self.verb == "fit" and not any(isinstance(each, SkipNonFinite) for each in listed):
            callbacks = [*callbacks, SkipNonFinite()]
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            config["plugins"] = [*plugins, WholeCheckpoints()]
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (TypeError, ValueError) as error:  # what Lightning raises for devices and accelerators that are none
            raise HuvrError(f"trainer: {error}") from error
