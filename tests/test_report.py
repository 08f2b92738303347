"""``huvr report`` on records written by hand."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from huvr.cli import main


def record(folder: Path, tokens: str = "tintok", stored: str = "fp16", **changes: Any) -> None:
    """A record as ``huvr probe`` writes it."""
    content = {
        "task": "depth", "encoder": "/far/away/runs/net", "tokens": tokens, "headline": "rmse", "lower_is_better": True,
        "seconds": 12.4, "metrics": {"delta1": 61.25, "rmse": 0.7312}, "bytes_per_image": 12608,
        "data": {"train": "/far/away/nyu/rooms, 3 images"},
        "config": {"model": {"init_args": {"encoder": {"source": "runs/net", "stored": stored}}}},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(content | changes))


class Text(HTMLParser):
    """The cells of all tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag in ("td", "th"):
            self.cells.append("")
            self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False if tag in ("td", "th") else getattr(self, "open", False)

    def handle_data(self, data: str) -> None:
        if getattr(self, "open", False):
            self.cells[-1] += data


def test_tables_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "runs" / "a")
    record(tmp_path / "runs" / "b", stored="int8", bytes_per_image=6698, metrics={"delta1": 61.0, "rmse": 0.74})
    record(tmp_path / "runs" / "deep" / "c", "pca32", metrics={"delta1": 70, "rmse": 0.7})
    rivals = {"JPEG <1>": {"bytes_per_image": 6000, "metrics": {"psnr": 21.5}}}
    record(tmp_path / "d", task="reconstruction", headline=None, lower_is_better=False, metrics={"psnr": 26.5}, rivals=rivals)
    out = tmp_path / "pages" / "report.html"
    assert main(["report", str(tmp_path / "runs"), str(tmp_path / "d"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("5 rows of 2 tables in ")

    text = out.read_text()
    assert "/far" not in text.replace("away/", "")  # paths are shortened
    assert not re.search(r"(src|href)=", text.replace("xlink:href", ""))  # nothing is fetched
    cells = Text(text).cells
    assert cells[:7] == ["encoder", "tokens", "stored", "bytes / image", "rmse", "delta1", "seconds"]
    assert cells[7:14] == ["runs/net", "tintok", "int8", "6,698", "0.7400", "61.00", "12"]
    assert "JPEG <1>" in cells
    assert text.count("<td class=best>") == 2
    assert "<td class=best>0.7000</td>" in text
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 2
    names = " ".join(element.text or "" for element in ElementTree.fromstring(plots[0]).iter() if element.tag.endswith("text"))
    for words in ("runs/net pca", "runs/net tintok", "bytes per image", "rmse (lower is better)"):
        assert words in names

    table = out.with_suffix(".md").read_text()
    assert "| runs/net | pca32 | fp16 | 12,608 | **0.7000** | 70.00 | 12 |" in table
    assert "## reconstruction" in table


def test_figures_that_are_none_and_names_with_dollars_are_shown(tmp_path: Path) -> None:
    record(tmp_path / "a", metrics={"rmse": float("nan")}, encoder="a$x_{$")
    record(tmp_path / "b", "pca8", metrics={"rmse": 0.5}, config={"model": {"init_args": {"encoder": "net"}}})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    table = (tmp_path / "r.md").read_text()
    assert "| nan |" in table
    assert "**0.5000**" in table
    (tmp_path / "b" / "record.json").unlink()
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0


def test_options_that_rivals_have_not_are_not_told(tmp_path: Path) -> None:
    for batch_size in (8, 16):
        config = {"model": {"init_args": {"refine": 0}}, "data": {"init_args": {"size": 64, "batch_size": batch_size}}}
        record(
            tmp_path / str(batch_size), f"pca{batch_size}", config=config, rivals={"jpeg": {"bytes_per_image": 9, "metrics": {}}}
        )
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    table = (tmp_path / "r.md").read_text()
    assert "refine" not in table
    assert table.count("| jpeg |") == 1


def test_rivals_at_other_sizes_are_told_apart(tmp_path: Path) -> None:
    for size in (16, 32):
        config = {"model": {"init_args": {"refine": 0}}, "data": {"init_args": {"size": size, "batch_size": size}}}
        record(tmp_path / str(size), config=config, rivals={"jpeg": {"bytes_per_image": 9 * size, "metrics": {"rmse": 1 / size}}})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    lines = [line for line in (tmp_path / "r.md").read_text().splitlines() if line.startswith("| jpeg")]
    assert len(lines) == 2
    assert all(f"size {size}" in line for size, line in zip((16, 32), lines, strict=True))


def test_what_several_records_measured_alike_is_listed_once(tmp_path: Path) -> None:
    for name in "ab":
        record(tmp_path / name, name, rivals={"mean": {"bytes_per_image": 3, "metrics": {"rmse": 1}}})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.md").read_text().count("| mean |") == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "record.json: not a readable JSON file"),
        ("{}", "record.json: not a record of huvr probe, without task, encoder, tokens, metrics, config"),
        ('{"task": "a", "encoder": "b", "tokens": "c", "metrics": {}, "config": {}}', "record.json: a record without metrics"),
        (
            '{"task": "a", "encoder": "b", "tokens": "c", "headline": "d", "metrics": {"e": 1, "f": 2}, "config": {}}',
            "record.json: its headline d is not among its metrics e, f",
        ),
        (
            '{"task": "a", "encoder": "b", "tokens": "c", "metrics": {"e": "high"}, "config": {}}',
            "record.json: not a record of huvr probe: its task, metrics, bytes_per_image, rivals or config are of another kind",
        ),
        (
            '{"task": "a", "encoder": "b", "tokens": "c", "metrics": {"e": 1}, "config": {}, "rivals": {"jpeg": {}}}',
            "record.json: not a record of huvr probe: its task, metrics, bytes_per_image, rivals or config are of another kind",
        ),
        (None, "no record.json of huvr probe in it"),
    ],
)
def test_mistakes(content: str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "record.json").write_text(content)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_only_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "a")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.pdf")]) == 2
    assert "expected a file that ends in .html" in capsys.readouterr().err


def test_encoders_and_protocols_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name, crop in (("one", 224), ("two", 512)):
        config = {
            "model": {"init_args": {"encoder": {"source": "x", "stored": "fp16"}, "lr": 0.1}},
            "data": {"init_args": {"crop": crop, "workers": crop}}, "trainer": {"max_steps": 9},
        }  # fmt: skip
        record(tmp_path / name, encoder=f"runs/{name}/checkpoints/last.ckpt", config=config)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    table = (tmp_path / "r.md").read_text()
    assert "| seconds | options |" in table
    for name, crop in (("one", 224), ("two", 512)):
        assert f"| {name}/checkpoints/last.ckpt | tintok |" in table
        assert f"| 12 | crop {crop} |" in table
