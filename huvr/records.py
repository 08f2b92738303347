"""The records that ``huvr probe`` leaves, read back and sorted into tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huvr.errors import HuvrError
from huvr.files import read_json

KEYS = ("task", "encoder", "tokens", "metrics", "config")
UNTOLD = ("model.encoder", "data.root", "data.workers", "data.cache")


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, on what, and the result.

    Attributes:
        encoder: the network, or a rival that has none.
        tokens: which kind, and "" for a rival.
        stored: "fp16", "int8" or "".
        bytes_per_image: None where it is not known.
        options: all others that bear on the result, by name.
    """

    task: str
    data: str
    headline: str
    lower_is_better: bool
    encoder: str
    tokens: str
    stored: str
    bytes_per_image: float | None
    metrics: dict[str, float]
    seconds: float | None = None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def series(self) -> str:
        """The curve it belongs to: an encoder's tokens of one kind, whatever their size."""
        return " ".join(part for part in (self.encoder, re.sub(r"[0-9]+$", "", self.tokens), self.told) if part)

    @property
    def told(self) -> str:
        """Its options in words."""
        return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in self.options.items())


@dataclass(frozen=True)
class Section:
    """All that was measured by one task on the same data."""

    task: str
    data: str
    rows: list[Row]

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics, the headline first."""
        names = dict.fromkeys(name for row in self.rows for name in row.metrics)
        return sorted(names, key=lambda name: name != self.rows[0].headline)

    @property
    def title(self) -> str:
        """The headline and which way is better."""
        return f"{self.rows[0].headline} ({'lower' if self.rows[0].lower_is_better else 'higher'} is better)"

    def best(self) -> float:
        """The best value of the headline."""
        values = [row.metrics[row.headline] for row in self.rows if math.isfinite(row.metrics.get(row.headline, math.nan))]
        return (min if self.rows[0].lower_is_better else max)(values, default=math.nan)


def found(folder: Path) -> list[Path]:
    """The records in a folder, sorted.

    Raises:
        HuvrError: where there are none.
    """
    records = sorted(folder.rglob("record.json")) if folder.is_dir() else []
    if not records:
        raise HuvrError(f"{folder}: no record.json of huvr probe in it")
    return records


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of one record: its own, and those of the rivals measured beside it.

    Raises:
        HuvrError: for a file that is no record.
    """
    record = read_json(path)
    if missing := [key for key in KEYS if key not in record]:
        raise HuvrError(f"{path}: not a record of huvr probe, without {', '.join(missing)}")
    rivals = record.get("rivals", {})
    plain = isinstance(record["task"], str) and isinstance(record["config"], dict) and isinstance(rivals, dict)
    if not (plain and all(measured(each) for each in (record, *rivals.values()))):
        raise HuvrError(
            f"{path}: not a record of huvr probe: its task, metrics, bytes_per_image, rivals or config are of another kind"
        )
    if not record["metrics"]:
        raise HuvrError(f"{path}: a record without metrics")
    headline = record.get("headline") or next(iter(record["metrics"]))
    if headline not in record["metrics"]:
        raise HuvrError(f"{path}: its headline {headline} is not among its metrics {', '.join(record['metrics'])}")
    encoder = ((record["config"].get("model") or {}).get("init_args") or {}).get("encoder")
    encoder = encoder if isinstance(encoder, dict) else {}  # of a task that is no FrozenEncoderTask
    shared = {
        "task": record["task"],
        "data": described(record.get("data")),
        "headline": headline,
        "lower_is_better": record.get("lower_is_better", False),
    }
    layer, options = encoder.get("layer"), options_of(record["config"])
    yield Row(
        **shared, encoder=record["encoder"] or "", stored=encoder.get("stored", ""), options=options,
        tokens=(record["tokens"] or "") + ("" if layer is None else f" of layer {layer}"),
        bytes_per_image=record.get("bytes_per_image"), metrics=record["metrics"], seconds=record.get("seconds"),
    )  # fmt: skip
    of_data = {name: value for name, value in options.items() if name.startswith("data.") and name != "data.batch_size"}
    for name, rival in rivals.items():
        yield Row(
            **shared, encoder=name, tokens="", stored="", bytes_per_image=rival.get("bytes_per_image"), metrics=rival["metrics"],
            options=of_data,
        )  # fmt: skip


def measured(part: Any) -> bool:
    """Whether that is what a record says of a network or a rival: metrics by name, and bytes if any."""
    if not (isinstance(part, dict) and isinstance(part.get("metrics"), dict)):
        return False
    return all(isinstance(value, int | float) for value in (*part["metrics"].values(), part.get("bytes_per_image") or 0))


def described(data: Any) -> str:
    """The data of a record in words, its paths shortened."""
    parts = data.values() if isinstance(data, dict) else [data or "data not named"]
    return "; ".join(re.sub(r"\S*/\S+", lambda path: short(path[0]), str(part)) for part in parts)


def short(path: str, parts: int = 2) -> str:
    """The last parts of a path."""
    return "/".join(path.rstrip("/").split("/")[-parts:])


def options_of(config: dict[str, Any]) -> dict[str, str]:
    """What a config says beyond encoder, data and machine, by name."""
    trainer = config.get("trainer") or {}
    parts = {name: (config.get(name) or {}).get("init_args") or {} for name in ("model", "data")}
    parts["trainer"] = {name: trainer.get(name) for name in ("max_epochs", "max_steps", "precision")}
    return dict(flat(parts))


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{a: {b: 1}}`` as ``("a.b", "1")``, but for what every row says in columns of its own or what bears on no result."""
    for name, value in values.items():
        if (path := prefix + name) in UNTOLD:
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{path}.")
        else:
            yield path, str(value)


def grouped(rows: Iterable[Row]) -> list[Section]:
    """Sections by task and data, their rows by bytes; rivals that several records measured alike are listed once.

    Encoders go by as much of their paths as tells them apart, and of the options those are told that differ.
    """
    sections: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        listed = sections.setdefault((row.task, row.data), [])
        if row not in listed:
            listed.append(row)
    return [
        Section(task, data, sorted(told_apart(listed), key=lambda row: (row.bytes_per_image or 0, row.series)))
        for (task, data), listed in sorted(sections.items())
    ]


def told_apart(rows: list[Row]) -> list[Row]:
    """The rows of a section, with short names of encoders and only those options that not all have alike."""
    paths = {row.encoder for row in rows}
    longest = max(path.count("/") for path in paths) + 1
    parts = next((n for n in range(2, longest) if len({short(path, n) for path in paths}) == len(paths)), longest)
    measured = [row.options for row in rows if row.options]
    names = dict.fromkeys(name for each in measured for name in each)
    differ = [name for name in names if len({each[name] for each in measured if name in each}) > 1]
    told = [{name: row.options[name] for name in differ if name in row.options} for row in rows]
    return [replace(row, encoder=short(row.encoder, parts), options=each) for row, each in zip(rows, told, strict=True)]
