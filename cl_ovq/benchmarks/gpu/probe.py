"""What machine this is: versions, its assemblers, and its ceilings."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton

from cl_ovq.benchmarks.gpu.clock import seconds_of
from cl_ovq.benchmarks.gpu.parts import Item, Settings
from cl_ovq.benchmarks.gpu.sanitizer import find_tool
from cl_ovq.runs.provenance import code_revision, package_versions

PTXAS = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")  # by which Triton is given another assembler
SHIPPED, CARRIED = "product, Triton's ptxas", "product, carried ptxas"


def items(settings: Settings) -> list[Item]:
    """Versions first, then what may fail."""
    found = [Item("versions", lambda: versions(settings)), Item(SHIPPED, lambda: product(settings, carried=False))]
    if PTXAS[0] in os.environ:
        found.append(Item(CARRIED, lambda: product(settings, carried=True)))
    return [
        *found,
        Item("copy rate", lambda: copy_rate(settings.device, 1 << (20 if settings.rehearsal else 30))),
        Item("product rate", lambda: product_rate(settings.device, 128 if settings.rehearsal else 8192)),
    ]


def versions(settings: Settings) -> dict[str, Any]:
    """Versions of everything that numbers depend on, and the GPU."""
    found: dict[str, Any] = {"packages": package_versions(), "code": code_revision(), "platform": platform.platform()}
    found["cuda"] = torch.version.cuda
    found["ptxas"] = {
        "Triton's": _version_of(str(Path(triton.__file__).parent / "backends/nvidia/bin/ptxas")),
        "carried": _version_of(os.environ.get(PTXAS[0])),
        "the machine's": _version_of(shutil.which("ptxas")),
    }
    found["compute-sanitizer"] = find_tool()
    found["compiler"] = shutil.which("cc") or shutil.which("gcc")  # Triton needs one to launch
    if not settings.rehearsal:
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "bytes": properties.total_memory,
        }
    return found


def _version_of(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    found = re.search(r"V(\d+[\d.]*)", text)
    return found[1] if found else text.strip()[-100:]


def product(settings: Settings, *, carried: bool) -> dict[str, Any]:
    """The product of a transposed product, which assemblers have got wrong on Hopper, in a process of its own."""
    environment = dict(os.environ)
    if not carried:
        environment = {name: value for name, value in environment.items() if name not in PTXAS}
    with tempfile.TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        run = subprocess.run(
            [sys.executable, "-m", "cl_ovq.benchmarks.gpu.product", settings.device],
            env=environment,
            capture_output=True,
            text=True,
            timeout=40,
        )
    if run.returncode:
        raise RuntimeError(run.stderr[-1500:])
    errors = {name: float(value) for name, value in (line.split() for line in run.stdout.splitlines())}
    return {"relative_rms": errors, "right": all(error < 1e-2 for error in errors.values())}


def copy_rate(device: str, size: int) -> dict[str, Any]:
    """Bytes read and written a second by a copy."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = seconds_of(lambda: target.copy_(source), device)
    return {"bytes": size, "seconds": spent, "bytes_per_second": 2 * size / spent["median"]}


def product_rate(device: str, size: int) -> dict[str, Any]:
    """Operations a second of a product of two bfloat16 matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    spent = seconds_of(lambda: a @ b, device)
    return {"size": size, "seconds": spent, "operations_per_second": 2 * size**3 / spent["median"]}
