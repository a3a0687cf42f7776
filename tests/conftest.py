"""Settings of all tests."""

import os

# Before torch is imported, and for the processes that tests start: the threads of tests that share cores wait for each
# other, which costs far more than they gain. A test that is about threads sets its own.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "1"

import torch
from hypothesis import settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: kernels then run without a GPU
# What an example takes says little on a busy machine. The suite's examples are the same each time, so that a failure is
# one of the change at hand; `make test-slow` draws others.
settings.register_profile("seeded", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile("seeded")

# Files whose tests take minutes: run first, so that at the end no process waits for the one that has the last of them.
LONGEST = (
    "test_sweep",
    "test_limits",
    "test_resume",
    "test_strategies",
    "test_benchmarks",
    "test_faults",
    "test_sequence_strategies",
    "test_properties",
    "test_cli",
    "test_triton",
    "test_hard_numbers",
    "test_figures",
    "test_runs",
    "test_comparison",
    "test_anytime",
    "test_browser",
    "test_secrets",
)


def pytest_collection_modifyitems(items):
    """Put the longest files first."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
