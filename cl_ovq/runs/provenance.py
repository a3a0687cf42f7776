"""What a result must carry besides its numbers: code, machine, memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

import cl_ovq
from cl_ovq.imports import changed
from cl_ovq.runs.summary import warn

PACKAGES = ("torch", "triton", "avalanche-lib", "ray", "mlflow", "omegaconf", "numpy", "scikit-learn", "torchvision")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def code_revision() -> dict[str, Any]:
    """Return the commit of this checkout and whether its tree has changes since; None for an installed package."""
    root = Path(cl_ovq.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return {"version": cl_ovq.__version__, "revision": None, "dirty": None}
    changes = _git(root, "status", "--porcelain")
    return {
        "version": cl_ovq.__version__,
        "revision": _git(root, "rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def warn_of_changed_imports(console: Console, kept: Mapping[str, Sequence[str]], run: str) -> None:
    """Say in a line which files of the user's own are not those that a run was made with.

    Args:
        console: where to.
        kept: `imports` of its provenance or checkpoint.
        run: in words.
    """
    if found := changed(kept):
        have = "has" if len(found) == 1 else "have"
        warn(console, "imports", f"{', '.join(found)} {have} changed since {run} began")


def device_name(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory, so that a run does not report what an earlier one needed.

    On Linux the kernel's high-water mark of resident memory is set back; elsewhere it stays that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak since `reset_peak_memory`: resident memory of the process on a CPU, allocated memory on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        return _status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes(device: torch.device) -> int:
    """Return the memory held now: resident memory of the process on a CPU, allocated memory on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def _status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
