"""Settings of all tests."""

import os

# Before torch is imported, and for the processes that tests start: the threads of tests that share cores wait for each
# other, which costs far more than they gain. A test that is about threads sets its own.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "1"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every process that a test starts would compile the platform anew

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: kernels then run without a GPU
# How long examples take, or take to be drawn, says little on a busy machine. The suite's examples are the same each
# time, so that a failure is one of the change at hand; `make test-slow` draws others.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("seeded", untimed, derandomize=True)
settings.register_profile("random", untimed)
settings.load_profile("seeded")

# Files that take longest, which run first, so that at the end no process waits for the one that has the last of them.
LONGEST = (
    "test_sweep",
    "test_faults",
    "test_strategies",
    "test_imports",
    "test_runs",
    "test_resume",
    "test_browser",
    "test_properties",
    "test_cli",
    "test_sequence_strategies",
    "test_triton_compile",
    "test_triton",
    "test_anytime",
    "test_working_directories",
    "test_operator",
    "test_figures",
    "test_benchmarks",
    "test_s3",
    "test_wheel",
    "test_full_disk",
    "test_documents",
    "test_tutorials",
    "test_hard_numbers",
    "test_nan",
    "test_comparison",
)


def pytest_collection_modifyitems(items):
    """Put the longest files first."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
