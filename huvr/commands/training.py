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
``checkpoints/last.ckpt``, of each epoch and of the end. A config that wants further checkpoints lists a ModelCheckpoint
of its own under ``trainer.callbacks``, without ``dirpath``. ``predict`` writes pictures into ``predictions``, unless
a callback under ``trainer.callbacks`` writes what the module predicts. Steps of ``fit`` without a finite loss are skipped; a
``huvr.safety.SkipNonFinite`` under ``trainer.callbacks`` says how many in a row are too many.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    ModelCheckpoint,
    ProgressBar,
    ThroughputMonitor,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from huvr.commands.arguments import ConfigByName, find_config, parse, read_yaml
from huvr.commands.calm import calm
from huvr.commands.checkpoints import find_checkpoint, refuse_to_overwrite
from huvr.commands.predictions import PictureWriter
from huvr.commands.together import ended_together
from huvr.errors import HuvrError
from huvr.files import whole
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
    if Path(options.run).is_file():
        raise HuvrError(f"run folder {options.run}: it is a file")
    checkpoint = find_checkpoint(options.ckpt_path, Path(options.run), training=verb == "fit")
    refuse_to_overwrite(Path(options.run), verb, options.ckpt_path, cli.trainer)
    rank_zero_info(f"run folder: {options.run}")
    if verb != "fit" and checkpoint is None and not getattr(cli.model, "start", None):
        rank_zero_warn(f"{verb} without --ckpt_path: of {type(cli.model).__name__} with the weights that it begins with")
    method = getattr(cli.trainer, verb)
    extra = {"return_predictions": False} if verb == "predict" else {}
    alone = only_one(Path(options.run), cli.trainer) if verb == "fit" else nullcontext()
    with alone, ended_together(cli.trainer), plain_endings(cli.trainer, checkpoint):
        method(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True, **extra)


@contextmanager
def only_one(run: Path, trainer: Trainer) -> Iterator[None]:
    """No two trainings write into one run folder, where each would take the other's half-written checkpoint for a leftover.

    Raises:
        HuvrError: where another one does.
    """
    if not trainer.is_global_zero or not trainer.checkpoint_callbacks:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which outlives a killed process in its workers
        except (BlockingIOError, PermissionError):
            if "SLURM_RESTART_COUNT" not in os.environ:  # no job is started twice, but a node that failed may have left its lock
                raise HuvrError(f"run folder {run}: another training is at work there; choose another --run") from None
        except OSError:
            rank_zero_warn(f"run folder {run}: its file system has no locks, so take care that no other training works there")
        yield


@contextmanager
def plain_endings(trainer: Trainer, checkpoint: Path | None) -> Iterator[None]:
    """Around a method of the Trainer that starts from ``checkpoint``: signals and mistakes of the user end it in one line."""
    try:
        yield
    except SIGTERMException:
        if trainer.is_global_zero:
            fitting = trainer.state.fn == TrainerFn.FITTING
            resume = f" after step {trainer.global_step}; --ckpt_path auto goes on from the last checkpoint" if fitting else ""
            print(f"huvr: terminated{resume}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as done:
        if done.code and trainer.state.status == TrainerStatus.INTERRUPTED:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise HuvrError(str(error)) from None
    except ValueError as error:
        if not str(error).startswith(" `val_check_interval`"):  # known only once the batches are
            raise
        raise HuvrError(f"trainer: {error}") from None
    except RuntimeError as error:
        if str(error).startswith("Early stopping conditioned on metric"):
            raise HuvrError(f"trainer.callbacks: {error}") from None
        # torch notices at any point of a step, and may then fail at clearing up
        if death := next(
            (str(each) for each in (error, error.__context__) if str(each).startswith("DataLoader worker (pid")), None
        ):
            raise HuvrError(
                f"a process that loads images died ({death.rstrip('. ')}), often for want of memory, of which fewer "
                "data.workers take less; --ckpt_path auto goes on from the last checkpoint"
            ) from error
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise HuvrError(f"checkpoint {checkpoint}: not of this model: {' '.join(str(error).split())}") from error


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


def helped(arguments: Sequence[str], classes: dict[str, str]) -> list[str]:
    """A bare ``--model.help`` or ``--data.help`` as that of the class there, of which the parser knows only the base."""
    bare = {f"--{key}.help": path for key, path in classes.items()}
    return [
        f"{argument}={bare[argument]}" if argument in bare and after.startswith("-") else argument
        for argument, after in zip(arguments, [*arguments[1:], "-"], strict=True)
    ]


def importable(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except (ImportError, ValueError):
        return False


class ConfigInRun(SaveConfigCallback):
    """The config in the run folder, wherever loggers write."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with whole(Path(trainer.default_root_dir, self.config_filename)) as temporary:
            self.parser.save(self.config, temporary, skip_none=False, overwrite=True, multifile=False)


class TrainingCLI(LightningCLI):
    """LightningCLI with our run folder, our configs and our errors.

    It builds model, data and trainer (``run=False``); which method runs is up to the caller. So Lightning
    never merges the hyper-parameters saved in ``--ckpt_path FILE`` into the options, where they would
    silently beat the config and the command line.
    """

    def __init__(self, verb: str, arguments: Sequence[str]) -> None:
        self.verb = verb
        self.classes = self.classes_of(arguments)
        self.arguments = helped(arguments, self.classes)
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=ConfigInRun,
            save_config_kwargs={"config_filename": f"config_{verb}.yaml", "save_to_log_dir": False},
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

    def classes_of(self, arguments: Sequence[str]) -> dict[str, str]:
        """The classes of model and data, those to fall back on where none is named."""
        return DEFAULTS | classes_named(arguments)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigByName, help="A YAML file, or the name of a shipped config.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", default=f"runs/{self.verb}", help="Folder of this run; runs/NAME with a config NAME.yaml.")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help='Checkpoint to start from: a file, or "auto" for that of this run with the most steps, if any.',
        )
        # A class that is named replaces the default here already, or it would inherit defaults of parameters of the same name.
        parser.set_defaults({key: {"class_path": path} for key, path in self.classes.items()})

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        self.config = parse(parser, args)
        seed = self.config.seed_everything
        if not 0 <= seed < 2**32:
            raise HuvrError(f"seed_everything {seed}: expected 0 to {2**32 - 1}")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
        if config["barebones"] or config["overfit_batches"]:
            option = "barebones" if config["barebones"] else "overfit_batches"
            raise HuvrError(
                f"trainer.{option}: not supported; a small data.epoch_size or trainer.limit_train_batches makes it short"
            )
        if config["logger"] is None or config["logger"] is True:
            config["logger"] = TensorBoardLogger(config["default_root_dir"], name="", version="")
        listed = config["callbacks"] or []
        listed = listed if isinstance(listed, list) else [listed]
        for tuner in (each for each in listed if isinstance(each, BatchSizeFinder | LearningRateFinder)):
            raise HuvrError(f"trainer.callbacks: {type(tuner).__name__} is not supported: it trains before training has begun")
        if config["enable_checkpointing"] is not False and not any(isinstance(each, LastCheckpoint) for each in listed):
            callbacks = [*callbacks, LastCheckpoint()]  # beside those listed, which may be of the best or of weights alone
        if (batches := config["accumulate_grad_batches"]) < 1:
            raise HuvrError(f"trainer.accumulate_grad_batches {batches}: expected 1 or more")
        if self.verb == "fit" and not any(isinstance(each, SkipNonFinite) for each in listed):
            callbacks = [*callbacks, SkipNonFinite()]
        writers = (each for each in listed if not isinstance(each, ProgressBar | ThroughputMonitor))
        if self.verb == "predict" and not any(is_overridden("on_predict_batch_end", each, Callback) for each in writers):
            callbacks = [*callbacks, PictureWriter()]
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            config["plugins"] = [*plugins, WholeCheckpoints()]
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except (TypeError, ValueError) as error:  # what Lightning raises for devices and accelerators that are none
            raise HuvrError(f"trainer: {error}") from error
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, ModelCheckpoint) and each.dirpath is None:
                each.dirpath = str(Path(config["default_root_dir"], "checkpoints"))  # not where the first of the loggers writes
            if isinstance(each, WeightAveraging) and each._device is None:
                # Lightning takes that of the weights, before they go to the GPU: each step would bring all of them back.
                each._device = torch.device(trainer.strategy.root_device.type)  # that of the process
        return trainer
