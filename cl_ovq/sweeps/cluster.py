"""Ray: started on this machine, or found; quiet in either case; with this very code on every node."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cl_ovq
from cl_ovq.errors import UserError
from cl_ovq.imports import VARIABLE
from cl_ovq.sweeps.liveness import Watch, check_address
from cl_ovq.sweeps.schema import ClusterOptions

PACKAGES = ("cl_ovq", "streams", "kernels")
# Ray and Tune read these when they are imported or started.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths mean what they mean to the driver
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the driver keeps its own records
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # Ray's own record of the sweep, which nothing here reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "90",  # a stopped trial still hands its last metrics over
}


def settle_ray() -> None:
    """Set what Ray reads from the environment, before it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def connected(options: ClusterOptions) -> Iterator[Watch]:
    """Connect to Ray for as long as the block lasts; a Ray that runs in this process already is used as it is.

    Raises:
        UserError: there is no cluster at the address, or Ray is gone before the block ends.
    """
    settle_ray()
    import ray

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if ray.is_initialized():
        watch = Watch()
        with _watched(watch):
            yield watch
        watch.stop()
        return
    terminate = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None where it was not set from Python
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    try:
        if options.address is None:
            ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, **quiet)
        else:
            check_address(options.address)
            environment = runtime_environment() if options.ship_code else {}
            if VARIABLE in os.environ:  # a local cluster's workers inherit it
                environment.setdefault("env_vars", {})[VARIABLE] = os.environ[VARIABLE]
            ray.init(address=options.address, runtime_env=environment or None, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cluster.address: cannot connect to '{options.address}': {str(error).splitlines()[0]}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray's own handler aborts the process
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    watch = Watch()
    try:
        with _watched(watch):
            yield watch
    finally:
        ray.shutdown()
        watch.stop()


@contextlib.contextmanager
def _watched(watch: Watch) -> Iterator[None]:
    """Tell what goes wrong when Ray is gone, or is interrupted because it is, as that."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if watch.lost():
            raise UserError(str(watch.reason)) from error
        raise
    else:
        if watch.reason is not None:
            raise UserError(watch.reason)
    finally:
        if watch.reason is None:
            watch.stop()  # otherwise it sees to it that what is left to do ends


def runtime_environment() -> dict[str, Any]:
    """Return the environment of workers on other nodes: this code, as it lies here, and nothing that is installed."""
    root = Path(cl_ovq.__file__).resolve().parents[1]
    return {
        "py_modules": [str(root / package) for package in PACKAGES],
        "excludes": ["**/__pycache__/**"],
        "env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_FUNCTION_THREAD_TIMEOUT_S": "90"},
    }
