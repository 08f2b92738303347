"""jsonargparse's messages, which take many lines, as one line that says what is allowed."""

from __future__ import annotations

import difflib
import re
from importlib import import_module

from jsonargparse import ArgumentParser

KEY = re.compile(r'Parser key "([^"]+)":')
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
NO_CLASS = re.compile(r"has no attribute|No module named|Expected a dot import path string: (?P<name>.*)")
UNKNOWN = re.compile(r"(?:(?:Group '(?P<group>[^']+)' does not accept o|O)ption '|unrecognized arguments: -*)(?P<name>[^\s'=]+)")
TYPE = re.compile(r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)")
LINK = re.compile(r"argument (?P<source>\S+) --> (?P<target>[^\s:]+)")
UNION = re.compile(r"Subtypes: \[(?P<type>.+)\]")
VALUE = re.compile(r"Given value: (?P<value>.*)")


def explain(message: str, parser: ArgumentParser) -> str:
    """What the parser's message means, in one line.

    The message is nested like the config; the first line that names a fault is the deepest it knows of.
    """
    keys: list[str] = []
    class_path = subtypes = None
    for line in message.splitlines():
        keys += KEY.findall(line)
        where = ".".join(keys)
        if match := CLASS.search(line):
            class_path = match[1]
        elif match := UNKNOWN.search(line):
            if match["name"] == "class_path":
                return f"{where}: beside class_path there is only init_args, which holds the options of the class"
            name = ".".join(filter(None, [where, match["group"], match["name"]]))
            return unknown(name, valid_keys(class_path, where) if class_path else valid_keys_of(parser))
        elif match := LINK.search(line):
            return f"{match['target']} follows from {match['source']}: set {match['source']} instead"
        elif match := TYPE.search(line):
            return f"{where}: expected {readable(match['type'])}, got {match['value']!r}"
        elif match := NO_CLASS.search(line):
            reason = "not a dotted path such as package.module.Class" if match["name"] else line.strip(" -")
            reason += "; PYTHONPATH=. finds files of this folder" if reason.startswith("No module") else ""
            return f"{where}: there is no class {match['name'] or class_path} ({reason})"
        elif match := UNION.search(line):
            subtypes = match["type"]
        elif subtypes and (match := VALUE.search(line)):
            return f"{where}: expected {readable(subtypes)}, got {match['value']!r}"
    return " ".join(message.split())


def unknown(key: str, valid: list[str]) -> str:
    """The message for a key that does not exist, with the nearest that does."""
    near = nearest(key, valid)
    siblings = sorted(name for name in valid if parent(name) == parent(key))
    hint = f": did you mean {near}?" if near else f"; allowed are {', '.join(siblings)}" if siblings else ""
    return f"unknown option {key}{hint}"


def nearest(key: str, valid: list[str]) -> str | None:
    """A similar name at the same place, the same name at another place, or a similar path."""
    siblings = {leaf(name): name for name in valid if parent(name) == parent(key)}
    if near := difflib.get_close_matches(leaf(key), siblings, n=1):
        return siblings[near[0]]
    elsewhere = [name for name in valid if leaf(name) == leaf(key)]
    return next(iter(elsewhere or difflib.get_close_matches(key, valid, n=1, cutoff=0.8)), None)


def parent(key: str) -> str:
    return key.rpartition(".")[0]


def leaf(key: str) -> str:
    return key.rpartition(".")[2]


def valid_keys_of(parser: ArgumentParser) -> list[str]:
    """All keys of a parser, those of its default model and data among them, in the short form of the command line."""
    return [name.replace(".init_args.", ".") for name, _ in parser.get_defaults(skip_validation=True).items()]


def valid_keys(class_path: str, where: str) -> list[str]:
    """The keys below ``where`` that the class there takes."""
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(import_module(module), name), where, fail_untyped=False)
    return valid_keys_of(parser)


def readable(types: str) -> str:
    """``<class 'int'>, typing.Literal['a', 'b'], <class 'NoneType'>`` as ``int or 'a' or 'b' or null``."""
    types = re.sub(r"<class '([\w.]+)'>", r"\1", types).replace("NoneType", "null")
    types = re.sub(r"typing\.Literal\[([^\]]*)\]", r"\1", types)
    types = re.sub(r"\b(?:[a-z_]\w*\.)+([a-zA-Z'])", r"\1", types)
    return re.sub(r", (?![^\[]*\])", " or ", types)
