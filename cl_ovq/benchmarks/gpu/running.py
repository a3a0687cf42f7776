"""Runs a part in processes of its own, as many as it takes, and leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from cl_ovq.benchmarks.gpu import records
from cl_ovq.benchmarks.gpu.parts import Part, Settings
from cl_ovq.benchmarks.gpu.wheels import ROOT

PAUSE = 0.1  # seconds between two looks at a process


def run_part(part: Part, settings: Settings, environment: dict[str, str], end: float) -> str:
    """Run what a part has left until the clock says `end`; return in words how that ended."""
    path = records.path_of(settings.output, part.name)
    while True:
        before = len(records.read(path))
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            code = _watch(_command(part, settings), environment, path, end, errors)
            errors.seek(0)
            said = errors.read()[-3000:]
        sys.stderr.write(said)
        if code == 0:
            return "done"
        if code is None and time.monotonic() >= end:
            return "out of time"
        new = records.read(path)[before:]  # an item that an earlier call was cut off in is not this one's
        lost = records.in_flight(new)
        if lost is not None:
            error = "took too long" if code is None else f"its process ended with exit code {code}"
            records.append(path, item=lost, ok=False, error=error)
        elif not new:
            records.append(path, part=part.name, error=said or f"exit code {code}")
            return f"could not start (exit code {code})"


def _command(part: Part, settings: Settings) -> list[str]:
    command = [sys.executable, "-m", "cl_ovq.benchmarks.gpu.worker", part.name, "--output", str(settings.output)]
    return [*command, "--processes", str(settings.processes), *["--rehearsal"] * settings.rehearsal]


def _watch(command: list[str], environment: dict[str, str], path: Path, end: float, errors: IO[str]) -> int | None:
    """Run a process; its exit code, or None if it was killed because an item or the part took too long."""
    before = len(records.read(path))
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, stderr=errors)
    try:
        while (code := process.poll()) is None:
            time.sleep(PAUSE)
            if time.monotonic() > end or _overdue(records.read(path)[before:]):
                return None
        return code
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()


def _overdue(found: list[records.Record]) -> bool:
    """Whether the item that is being done has been for longer than it may."""
    if records.in_flight(found) is None:
        return False
    last = next(record for record in reversed(found) if "begun" in record)
    return time.time() - last["begun"] > last["limit"]


def environment_of(settings: Settings, carried: dict[str, str], part: Part) -> dict[str, str]:
    """The environment of a part's processes.

    The carried assembler is used unless the probe saw it fail where Triton's own was right.
    """
    from cl_ovq.benchmarks.gpu.probe import CARRIED, PTXAS, SHIPPED

    found = os.environ | carried | {"PYTHONUNBUFFERED": "1"}
    if settings.rehearsal and part.name != "warm_up":  # which compiles for a GPU that it does not need
        found["TRITON_INTERPRET"] = "1"
    probed = records.ended(records.read(records.path_of(settings.output, "probe")))
    right = {name: records.result_of(probed.get(name, {})).get("right") for name in (CARRIED, SHIPPED)}
    if part.name != "probe" and CARRIED in probed and right[SHIPPED] and not right[CARRIED]:
        found = {name: value for name, value in found.items() if name not in PTXAS}
    return found
