"""Command lines in processes of their own that are forked, in 0.1 s, from one that has imported what takes 8 s.

For tests that need a real process (its signals, its death, its output), and not a fresh interpreter: imports, entry
points, installed packages and the script itself are tested in fresh ones.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# None of them starts a thread, which a fork would lose. (MLflow does.)
PRELOADED = ["cl_ovq.cli.app", "cl_ovq.runs.setup", "cl_ovq.runs.run", "cl_ovq.evaluation.matrix"]
SECONDS = 600.0  # a process that takes longer hangs, on however busy a machine

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


class ForkedCommand:
    """A command line that runs in a process of its own.

    Args:
        arguments: of `cl-ovq`.
        folder: its working directory.
    """

    def __init__(self, *arguments: object, folder: Path | str | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked")
        self._out, self._error = (Path(self._folder.name) / name for name in ("out", "error"))
        given = [str(argument) for argument in arguments]
        where = str(folder or Path.cwd())
        self._process = context.Process(
            target=_command_line, args=(given, where, dict(os.environ), self._out, self._error)
        )
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code: minus the signal's number if one ended it, and None while it runs."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self._error.read_text() if self._error.exists() else ""

    def wait(self, seconds: float = SECONDS) -> ForkedCommand:
        """Wait for its end."""
        self._process.join(seconds)
        assert self.returncode is not None, f"it still runs after {seconds} s: {self.stderr}"
        return self

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it runs, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        self.wait()


def _command_line(arguments: list[str], folder: str, environment: Mapping[str, str], out: Path, error: Path) -> None:
    """What the child does: be the process that a shell would have started."""
    assert len(os.listdir(f"/proc/{os.getppid()}/task")) == 1  # a fork takes no other thread along
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for path, descriptor in ((out, 1), (error, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["cl-ovq", *arguments]
    from cl_ovq.cli import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
