"""Data flows one way: what may import what."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "huvr"


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, at its top or within."""
    nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


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
