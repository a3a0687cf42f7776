"""Small sweeps of the tiny experiment, on a real Ray."""

from __future__ import annotations

import io

import pytest
import yaml
from rich.console import Console

from cl_ovq.sweeps import load_sweep
from cl_ovq.sweeps.run import run_sweep

SWEEP = {
    "title": "Tiny",
    "set": {"tracking.enabled": False, "evaluation.dictionary_every": 100},
    "space": {"optimizer.learning_rate": {"choice": [1e-3, 1e-2]}},
    "search": {"name": "grid"},
    "selection": {"test_seeds": 0},
    "cluster": {"cpus": 2},
}


@pytest.fixture(scope="session")
def sweep_file(tiny_path, tmp_path_factory):
    """`sweep_file(**sections)`: the path of a sweep of the tiny experiment."""

    def sweep_file(**sections):
        path = tmp_path_factory.mktemp("sweep") / "small.yaml"
        tree = {"experiment": str(tiny_path)} | SWEEP | sections
        given = {key: value for key, value in tree.items() if value is not None}
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        return path

    return sweep_file


@pytest.fixture(scope="session")
def start():
    """`start(path, folder, *overrides, resume=False)`: a sweep's outcome, and what was said."""

    def start(path, folder, *overrides, resume=False):
        said = io.StringIO()
        outcome = run_sweep(load_sweep(str(path), overrides), folder, Console(file=said), resume=resume)
        return outcome, said.getvalue()

    return start
