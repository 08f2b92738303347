"""Options of the verbs: configs found by name, and parsers made from functions."""

from __future__ import annotations

import difflib
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from huvr.commands.messages import explain
from huvr.errors import HuvrError


def call(function: Callable[..., None], arguments: Sequence[str]) -> None:
    """Call ``function`` with parameters from the command line.

    Keyword-only parameters are options; the others are positional, a ``list[…]`` taking one value or more.
    """
    doc = docstring_parser.parse(function.__doc__ or "")
    parser = ArgumentParser(
        prog=f"huvr {function.__name__}", description=doc.description, exit_on_error=False, allow_abbrev=False
    )
    helps = {parameter.arg_name: parameter.description for parameter in doc.params}
    lists = {name: get_args(hint)[0] for name, hint in get_type_hints(function).items() if get_origin(hint) is list}
    for name, item in lists.items():
        parser.add_argument(name, nargs="+", type=item, metavar=name.removesuffix("s").upper(), help=helps[name])
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(lists))
    function(**vars(parse(parser, [underscored(argument) for argument in arguments])))


def underscored(argument: str) -> str:
    """``--per-class=8`` as ``--per_class=8``; the name of an option only."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if argument.startswith("--") else argument


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Any:
    """The options as a namespace.

    Raises:
        HuvrError: for what the parser does not accept, in one line.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise HuvrError(explain(str(error), parser)) from None


class ConfigByName(ActionConfigFile):
    """``--config NAME``: a file, or else a shipped config; it also names the run, unless something else did."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        path = find_config(values)
        trainer = read_yaml(path).get("trainer")
        if isinstance(trainer, dict) and "default_root_dir" in trainer:  # the link from run would silently replace it
            raise HuvrError(f"{path}: trainer.default_root_dir follows from run: set run instead")
        try:
            super().__call__(parser, namespace, str(path), option_string)
            parser.validate(namespace, skip_required=True)
        except (ArgumentError, KeyError, TypeError) as error:
            raise HuvrError(f"{path}: {explain(str(error), parser)}") from None
        if namespace.get("run") == parser.get_default("run"):
            namespace["run"] = f"runs/{path.stem}"


def find_config(name: str) -> Path:
    """The file of that name, else the shipped config of that name (``pretrain.yaml``, ``generate/dit_b.yaml``).

    Raises:
        HuvrError: where there is neither; it lists what is shipped.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(files("huvr.configs")))
    shipped = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise HuvrError(f"config {name}: no such file, and not one of the shipped {', '.join(shipped)}{hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a config.

    Raises:
        HuvrError: for a file that is not YAML with keys at the top.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise HuvrError(f"{path}{place}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise HuvrError(f"{path}: not a YAML file") from None
    if not isinstance(content, dict):
        raise HuvrError(f"{path}: expected keys with values, such as 'model:' and 'data:'")
    return content
