"""The tests of the kernels, run by pytest side by side; every test leaves a record as it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cl_ovq.benchmarks.gpu import records
from cl_ovq.benchmarks.gpu.parts import Item, Settings

PLUGIN = "cl_ovq.benchmarks.gpu.pytest_records"
FOLDER = Path(__file__).resolve().parents[3] / "tests" / "kernels"


def test(settings: Settings) -> dict[str, Any]:
    """Run what has no record yet, and count."""
    path = records.path_of(settings.output, "native_tests")
    done = [record["test"] for record in records.read(path) if "test" in record]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:  # the workers read it while records are added
        file.write("\n".join(done))
        file.flush()
        command = [sys.executable, "-m", "pytest", str(FOLDER), "-p", PLUGIN, "-n", str(max(2, settings.processes - 2))]
        if settings.rehearsal:
            command += ["-k", "same_bits_again or not_serve"]
        else:
            # Compiling for other targets needs no GPU.
            command += ["-m", "slow or not slow", "--ignore", str(FOLDER / "test_triton_compile.py")]
        environment = os.environ | {"GPU_TEST_RECORDS": str(path), "GPU_TESTS_DONE": file.name}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
    outcomes = Counter(record["outcome"] for record in records.read(path) if "test" in record)
    # Exit code 5: every test had its record before.
    right = run.returncode in (0, 5) and not outcomes["failed"]
    return {"exit_code": run.returncode, "outcomes": dict(outcomes), "right": right, "output": run.stdout[-1500:]}


def items(settings: Settings) -> list[Item]:
    """One item: pytest."""
    return [Item("pytest", lambda: test(settings), limit=600)]
