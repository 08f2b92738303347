"""Data flows one way: what may import what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "huvr"


def imported(path: Path) -> set[str]:
    """Names of all that a file imports, at its top or within, in full."""
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def test_every_form_of_an_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "huvr")
    file = tmp_path / "huvr" / "data" / "file.py"
    file.parent.mkdir(parents=True)
    for line in (
        "import huvr.tasks.base", "from huvr import tasks", "from huvr.tasks import base", "from .. import tasks",
        "from ..tasks import base", "from huvr.tasks.base import Eye",
    ):  # fmt: skip
        file.write_text(f"def function():\n    {line}\n")
        assert importing("huvr.tasks", [file]) == [str(file)]
    file.write_text("from . import loader\nfrom .loader import Batch\nimport huvr.tasks_of_others\n")
    assert importing("huvr.tasks", [file]) == []


def importing(part: str, files: list[Path]) -> list[str]:
    return [str(file) for file in files if any(f"{name}.".startswith(f"{part}.") for name in imported(file))]


def test_the_package_knows_nothing_of_its_tasks() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    assert importing("huvr.tasks", files) == []


def test_only_the_command_line_knows_the_commands() -> None:
    files = [
        file for file in PACKAGE.rglob("*.py") if file.parent.name != "commands" and file.name not in ("cli.py", "__main__.py")
    ]
    assert importing("huvr.commands", files) == []
