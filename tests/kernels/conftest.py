"""Settings for all tests of the operator."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `kernel_helpers`: pytest imports test files by path


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """Fill what `empty` gives with NaN, so that a buffer read before it is written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # on a GPU not every function has such an algorithm
    yield
    torch.use_deterministic_algorithms(False)
