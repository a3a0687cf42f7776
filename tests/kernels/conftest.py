"""Settings for all tests of the operator."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `kernel_helpers`: pytest imports test files by path


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """Fill what `empty` gives with NaN, so that a buffer read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _interpreter_prepares_once():
    """Triton's interpreter prepares its language anew for every function that a kernel calls: once a launch will do."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.runtime import interpreter

    prepared: set[int] = set()
    launch = interpreter.InterpretedFunction.run

    def run(self, *args, **kwargs):
        prepared.clear()
        return launch(self, *args, **kwargs)

    def call(self, *args, **kwargs):
        module = id(self.fn.__globals__)
        if module not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(module)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "run", run)
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
