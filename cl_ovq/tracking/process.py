"""The sending process, as the training process sees it: one, started when it is first needed, kept for further runs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import cl_ovq
from cl_ovq.tracking.store import settle_mlflow


class SenderProcess:
    """A process that sends journals (`sender.py`).

    It has no part in Ctrl-C: it belongs to a session of its own, and ends when this process has.
    """

    _shared: ClassVar[SenderProcess | None] = None

    def __init__(self) -> None:
        settle_mlflow()
        root = str(Path(cl_ovq.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # It computes nothing, and a GPU's memory is for training.
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - it is to live as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cl_ovq.tracking.sender"],
            # Every path that it is given is absolute. The working directory of now may be gone when it opens a store.
            cwd=tempfile.gettempdir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self._owner, self._number, self._rest = os.getpid(), 0, b""
        self._answers: dict[int, dict[str, Any]] = {}

    @classmethod
    def shared(cls) -> SenderProcess:
        """Return this process's sender, started if there is none, or none that is alive."""
        found = cls._shared
        if found is None or found._owner != os.getpid() or not found.alive:
            found = cls._shared = cls()
        return found

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    @classmethod
    def ask(cls, do: str, seconds: float, **content: Any) -> dict[str, Any] | None:
        """Give a command and wait for the answer; a process that dies in between is replaced once.

        Args:
            do: the command.
            seconds: to wait, in all.
            content: of the command.
        """
        deadline = time.monotonic() + seconds
        for _ in range(2):
            process = cls.shared()
            answer = process.answer(process.tell(do, **content), deadline - time.monotonic())
            if answer is not None or process._process.poll() is None:
                return answer
        return None

    def tell(self, do: str, **content: Any) -> int:
        """Give a command without waiting for the answer; return its number."""
        self._number += 1
        line = json.dumps({"number": self._number, "do": do, **content}).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except OSError:  # it died; the journal has everything
            self._process.poll()
        return self._number

    def answer(self, number: int, seconds: float) -> dict[str, Any] | None:
        """Wait for the answer to a command; None if it does not come in time."""
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while True:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                given: dict[str, Any] = json.loads(line)
                self._answers[given.pop("number")] = given
            if number in self._answers:
                return self._answers.pop(number)
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            data = os.read(descriptor, 1 << 16)
            if not data:  # it died
                self._process.wait()
                return None
            self._rest += data

    def complaints(self) -> str:
        """Return what the process wrote to standard error: the reason, where it has died."""
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace").strip()
