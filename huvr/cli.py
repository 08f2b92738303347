"""The command line: ``huvr VERB …``.

A verb of ``TRAINING`` runs the method of that name of Lightning's Trainer on whatever module and data
a config names (:mod:`huvr.commands.training`). A verb of ``TOOLS`` is a plain function whose signature
and docstring make its options. A verb of ``TASKS`` deals with what installed packages measure frozen encoders by, and
reads its options itself. Nothing heavy is imported before the verb is known.

A mistake of the user ends in one line on standard error and exit status 2; a mistake of ours keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version

from huvr.commands.memory import keep_memory
from huvr.errors import HuvrError, of_worker

TRAINING = {
    "fit": "train what a config describes",
    "validate": "measure a checkpoint on the validation data",
    "test": "measure a checkpoint on the test data",
    "predict": "run a checkpoint on the data to predict",
}
TOOLS = {
    "reconstruct": ("huvr.commands.reconstruct", "photos through TinToks and back: pictures and PSNR"),
    "encode": ("huvr.commands.encode", "the tokens of a folder of images, to a Parquet file"),
    "convert": ("huvr.commands.convert", "released weights into our format, and back"),
    "export": ("huvr.commands.export", "a network as ONNX or torch.export graphs, which run without huvr"),
    "generate": ("huvr.tasks.generation.command", "pictures from a trained generator"),
    "report": ("huvr.commands.report", "the records of many probes, in tables and plots"),
}
TASKS = {
    "probe": ("huvr.commands.probe", "a task on a frozen encoder: its figures, in a record"),
    "tasks": ("huvr.commands.tasks", "the tasks that are installed"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``huvr`` with ``argv`` (of the process by default); returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_memory()
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left of our output
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("huvr: interrupted", file=sys.stderr)
        return 130
    except SystemExit as done:  # --help of a verb, a job requeued or terminated
        return int(done.code or 0)
    except Exception as error:
        line = user_error(error)
        if line is None:
            raise
        print(f"huvr: error: {line}", file=sys.stderr)
        return 2


def unread() -> bool:
    """Whether nobody reads our output any more (``huvr tasks | head -1``)."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def run(arguments: list[str]) -> int:
    verb, options = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print(overview())
    elif verb == "--version":
        print(f"huvr {version('huvr')}")
    elif verb in TRAINING:
        import_module("huvr.commands.training").run(verb, options)
    elif verb in TOOLS:
        function = getattr(import_module(TOOLS[verb][0]), verb)
        with cleaning_up():
            import_module("huvr.commands.arguments").call(function, options)
    elif verb in TASKS:
        import_module(TASKS[verb][0]).run(options)
    else:
        verbs = [*TRAINING, *TOOLS, *TASKS]
        near = difflib.get_close_matches(verb, verbs, n=1)
        raise HuvrError(f"unknown verb {verb!r}: {f'did you mean {near[0]!r}?' if near else 'choose one of ' + ', '.join(verbs)}")
    return 0


@contextmanager
def cleaning_up() -> Iterator[None]:
    """SIGTERM (kill, timeout, a batch system) ends the block as an exception does: what is half written goes."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def overview() -> str:
    """The help of the command as a whole."""
    rows = [*TRAINING.items(), *((verb, text) for verb, (_, text) in [*TOOLS.items(), *TASKS.items()])]
    return "\n".join([
        "usage: huvr VERB …",
        "",
        "One vision encoder for seeing and drawing (HUVR, arXiv 2601.14256).",
        "",
        *(f"  {verb:<12}{text}" for verb, text in rows),
        "",
        "  huvr VERB --help   the options of a verb",
        "  huvr --version     the version",
    ])  # fmt: skip


def user_error(error: BaseException | None) -> str | None:
    """The one line for a mistake of the user; None where the mistake is ours.

    Libraries wrap the errors of what they call, so the explicit causes are looked at too.
    """
    while error is not None:
        if isinstance(error, HuvrError):
            return " ".join(of_worker(str(error)).split())
        if isinstance(error, OSError) and error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        error = error.__cause__
    return None
