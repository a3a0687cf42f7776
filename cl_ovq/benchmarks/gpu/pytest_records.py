"""A plugin of pytest that records every test as it ends, and leaves out those that a file names."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from cl_ovq.benchmarks.gpu import records
from cl_ovq.benchmarks.gpu.worker import gpu_answers

WORKER = "PYTEST_XDIST_WORKER" in os.environ
LIMIT = 120.0  # seconds of a test


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what was run before, and put first what only a GPU can tell."""
    done = set(Path(os.environ["GPU_TESTS_DONE"]).read_text().splitlines())
    left_out = [item for item in items if item.nodeid in done]
    config.hook.pytest_deselected(items=left_out)
    rest = (item for item in items if item.nodeid not in done)
    items[:] = sorted(rest, key=lambda item: "triton" not in item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    """End a process whose test hangs; the others go on, and another takes its place."""
    if not WORKER:
        return (yield)
    watchdog = threading.Timer(LIMIT, os._exit, (4,))
    watchdog.daemon = True
    watchdog.start()
    try:
        return (yield)
    finally:
        watchdog.cancel()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: Any) -> None:
    """Record the outcome of a test, where reports are gathered; a process whose GPU no longer answers ends."""
    if WORKER:
        if report.failed and not gpu_answers():
            os._exit(3)
        return
    if report.when != "call" and report.outcome == "passed":
        return
    error = {"error": report.longreprtext[-1500:]} if report.failed else {}
    path = Path(os.environ["GPU_TEST_RECORDS"])
    records.append(path, test=report.nodeid, outcome=report.outcome, seconds=report.duration, **error)
