"""The processes that Lightning starts on one machine: a mistake of the user ends them all, and is told once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from huvr.errors import HuvrError

MISTAKE = 2  # exit status for a mistake of the user
PATIENCE = 3  # seconds


@contextmanager
def ended_together(trainer: Trainer) -> Iterator[None]:
    """A mistake of the user is told in one line by the process that found it, and ends those that the first one started too.

    They would wait for each other, or bury that line under theirs.
    """
    subprocess_script._ChildProcessObserver = Observer  # type: ignore[misc]
    try:
        yield
    except Exception as error:
        if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
            told = not isinstance(error, HuvrError) and any(status(child) == MISTAKE for child in launcher.procs)
            launcher.kill(signal.SIGKILL)
            if told:
                raise SystemExit(MISTAKE) from None
        raise


def status(child: subprocess.Popen[bytes]) -> int | None:
    """The exit status of a process that may be about to end."""
    with suppress(subprocess.TimeoutExpired):
        return child.wait(timeout=PATIENCE)
    return None


class Observer(subprocess_script._ChildProcessObserver):
    """Lightning's: a thread of the first process that looks whether the others live, and kills all once one has failed.

    Where the first process has heard of the failure, of Ctrl-C or of SIGTERM too, it is about to end by itself, and has the
    time for that. A mistake of the user has been told already, so it is the status then, and nothing more is said.
    """

    def _run(self) -> bool:
        if any(child.poll() for child in self._child_processes):
            time.sleep(2 * PATIENCE)  # this thread ends with its process
            if any(child.returncode == MISTAKE for child in self._child_processes):
                for child in self._child_processes:
                    child.kill()
                os._exit(MISTAKE)
        return super()._run()
