"""Runs that were never disturbed, to compare with."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cl_ovq.runs.run import run_experiment

sys.path.insert(0, str(Path(__file__).parent))  # for `resume_helpers`: pytest imports test files by path

from resume_helpers import final


@pytest.fixture
def quiet():
    return Console(file=io.StringIO(), width=500)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    done = {}

    def undisturbed(*overrides):
        if overrides not in done:
            folder = tmp_path_factory.mktemp("whole")
            result = run_experiment(tiny(*overrides, f"output_dir={folder}"), Console(file=io.StringIO()))
            done[overrides] = result, final(folder)
        return done[overrides]

    return undisturbed
