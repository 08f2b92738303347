"""Silence for what libraries say on every run and a user can do nothing about."""

from __future__ import annotations

import logging
import warnings

LINES = (
    "💡 Tip: ",  # advertises a logger
    "TPU available: ",
    "Loading `train_dataloader` to estimate",  # our learning rate needs the number of steps
    "Retrying in ",  # the hub's client, twice five times; our own error says what was asked for in vain
)
WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    "Checkpoint directory .* exists and is not empty",  # the run folder of a run that goes on
    "Precision .* is not supported by the model summary",
    "The `srun` command is available on your system but is not used",
    r".*Please add the following callbacks: \['SkipNonFinite'\]",  # of a training, for which measuring has no use
    "You're using the WeightAveraging callback with a model that overrides",  # ours shards nothing unless told to
    r"torch\.distributed\.nn\.functional\.all_gather is deprecated",
    ".*does not have many workers",  # the data module chooses their number, or the config does
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "huggingface_hub.utils._http",
)


def calm() -> None:
    """Drop those messages for the rest of this process; everything else still shows."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(worth_reading)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)


def worth_reading(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not message.startswith(LINES) and " thrown while requesting " not in message
