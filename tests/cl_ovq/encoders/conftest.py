"""What tests of encoders share."""

import sys
from pathlib import Path

import pytest

from cl_ovq.imports import import_parts

sys.path.insert(0, str(Path(__file__).parent))  # for `encoder_helpers`: pytest imports test files by path

from encoder_helpers import write_nets


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Code and weights of an encoder that was imported; features are kept below `tmp_path`."""
    monkeypatch.setenv("CL_OVQ_IMPORTS", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, weights = write_nets(tmp_path)
    import_parts([str(code)])
    return code, weights
