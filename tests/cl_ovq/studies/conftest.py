"""The small study, and its runs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `study_helpers`: pytest imports test files by path

from study_helpers import STUDY, run


@pytest.fixture(scope="session")
def file(tiny_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "small.yaml"
    path.write_text(STUDY.format(tiny=tiny_path))
    return path


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return run(file, folder)[0], folder
