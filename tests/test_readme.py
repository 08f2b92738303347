"""README and docs hold the figures of the records, and what they point to exists."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from huvr.cli import TASKS, TOOLS, TRAINING

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_every_table_is_that_of_its_record() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.PAGES:
        text = page.read_text()
        assert tables.written(text) == text


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_how_it_came_about(record: Path) -> None:
    content = json.loads(record.read_text())
    assert content.keys() == {"command", "commit", "date", "hardware", "torch", "data", "config", "figures"}
    script = content["command"].split()[1]
    assert (ROOT / script).is_file()
    assert content["commit"] != "unknown"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_shown_exist(page: Path) -> None:
    shown = set(re.findall(r"^    huvr (\w+)", page.read_text(), re.MULTILINE))
    assert shown <= {*TRAINING, *TOOLS, *TASKS}
    for name in re.findall(r"--config ([a-z0-9_/]+\.yaml)", page.read_text()):
        assert (ROOT / "configs" / name).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_places_linked_exist(page: Path) -> None:
    for path, place in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.is_file()
        if place:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
