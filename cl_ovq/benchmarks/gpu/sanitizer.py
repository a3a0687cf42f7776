"""Small calls under NVIDIA's checkers of memory accesses and races, where the machine has them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from glob import glob
from typing import Any

from cl_ovq.benchmarks.gpu.once import KINDS, NOT_FINITE
from cl_ovq.benchmarks.gpu.parts import Item, Settings

TOOL = "compute-sanitizer"
# PyTorch asks the driver for things that it may not have: that is no fault of ours.
CHECKS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
FOUND = 9  # exit code that the checker is told to leave with


def find_tool() -> str | None:
    """The checker, on the path or beside the compiler."""
    return shutil.which(TOOL) or next(iter(sorted(glob(f"/usr/local/cuda*/bin/{TOOL}"))), None)


def check(tool: str | None, name: str, kind: str, settings: Settings) -> dict[str, Any]:
    """One call under one checker; without a checker, the call alone."""
    command = [sys.executable, "-m", "cl_ovq.benchmarks.gpu.once", kind, settings.device]
    if tool is not None:
        command = [tool, "--tool", name, *CHECKS[name], "--error-exitcode", str(FOUND), *command]
    # Every tensor of its own, so that an access beyond one shows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=55)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode not in (0, FOUND, NOT_FINITE):
        raise RuntimeError(said[-1500:])
    return {"checker": tool or "none", "right": process.returncode == 0, "output": said[-800:]}


def items(settings: Settings) -> list[Item]:
    """Every checker on every call, memory first."""
    tool = find_tool()
    if tool is None and not settings.rehearsal:
        return [Item(f"{TOOL} is not here", dict)]
    names, kinds = (tuple(CHECKS), KINDS) if tool else (("memcheck",), KINDS[:1])
    return [Item(f"{name} {kind}", partial(check, tool, name, kind, settings), 60) for name in names for kind in kinds]
