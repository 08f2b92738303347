"""``huvr tasks``: the tasks that installed packages bring, under the entry-point group ``huvr.tasks``.

A package adds one in its pyproject::

    [project.entry-points."huvr.tasks"]
    counting = "my_package.counting:Counting"

A task is a LightningModule whose parameter ``encoder`` says which tokens it sees, and the file ``counting.yaml`` beside
``my_package/counting.py`` is its protocol (:mod:`huvr.commands.probe`).
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from huvr.errors import HuvrError

GROUP = "huvr.tasks"


def run(arguments: Sequence[str]) -> None:
    """Print name, description and package of each task, without importing any."""
    if arguments and arguments[0] not in ("-h", "--help"):
        raise HuvrError(f"huvr tasks takes no options, got {arguments[0]!r}")
    if arguments:
        print("usage: huvr tasks\n\nLists the tasks that are installed, each with the package it comes from.")
        return
    found = installed()
    width = max((len(name) for name in found), default=0)
    for name, entry in found.items():
        print(f"{name:<{width}}  {description(entry)}  [{package(entry)}]")


def installed() -> dict[str, EntryPoint]:
    """All tasks by name, sorted; one of another package does not replace one of ours."""
    ours_last = sorted(entry_points(group=GROUP), key=lambda entry: package(entry) == "huvr")
    found = {entry.name: entry for entry in ours_last}
    return {name: found[name] for name in sorted(found)}


def find(name: str) -> EntryPoint:
    """The task of that name.

    Raises:
        HuvrError: where there is none; it lists what there is.
    """
    found = installed()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]!r}? Installed" if near else "installed"
        raise HuvrError(f"unknown task {name!r}: {hint} are {', '.join(found) or 'none'}")
    return found[name]


def package(entry: EntryPoint) -> str:
    """Name of the package a task comes from."""
    return entry.dist.name if entry.dist else "unknown package"


def description(entry: EntryPoint) -> str:
    """The first line of the docstring of the class, read from the source: importing a task would import torch."""
    try:
        spec = find_spec(entry.module)
        if spec is None or spec.origin is None:
            return f"cannot be read (no module {entry.module})"
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        texts = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == entry.attr]
        return ((texts and texts[0]) or "no description").splitlines()[0]
    except Exception as error:  # whatever a foreign package comes up with
        return f"cannot be read ({type(error).__name__}: {error})"
