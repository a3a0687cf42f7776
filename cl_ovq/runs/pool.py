"""Makes many runs: one after the other in this process, or several at a time in processes of their own."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console

from cl_ovq.config import ExperimentConfig
from cl_ovq.tracking import RunKey

Name = TypeVar("Name", bound=Hashable)
Make = Callable[[ExperimentConfig], object]


def run_one(
    config: ExperimentConfig, parent: RunKey | None = None, *, resume: bool = True, overwrite: bool = False
) -> None:
    """Make a run in this process, quietly; its directory has all of it."""
    from cl_ovq.runs.run import run_experiment

    run_experiment(config, Console(quiet=True), parent, resume=resume, overwrite=overwrite)


def run_many(
    ready: Callable[[], Iterable[tuple[Name, ExperimentConfig]]],
    ended: Callable[[Name, BaseException | None], None],
    *,
    jobs: int = 1,
    make: Make = run_one,
) -> None:
    """Make runs until none is ready and none is at work.

    Args:
        ready: returns what could start now, most urgent first: the name of a run, and its configuration, whose
            `output_dir` is where it goes. Asked again whenever a run has ended; what has started it may name again.
        ended: is told the name of a run that has ended, and why, if it failed.
        jobs: runs at a time; more than one run in processes of their own.
        make: makes one run. With several jobs it must be something that can be pickled.
    """
    pool = _pool(jobs)
    running: dict[Future[None], Name] = {}
    started: set[Name] = set()
    try:
        while True:
            # No more than run: what is asked for first then ends first, and one who stops has whole results.
            waiting = ((name, config) for name, config in ready() if name not in started)
            for name, config in itertools.islice(waiting, jobs - len(running)):
                started.add(name)
                running[_start(pool, make, config)] = name
            if not running:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                done = wait(running).done  # a pool that lost a process gives up what the others do, too
                pool = _pool(jobs)
            for future in done:
                ended(running.pop(future), future.exception())
    finally:
        if pool is not None:
            # Only after Ctrl-C or SIGTERM is anything at work: it would go on to its end, and be waited for.
            for process in multiprocessing.active_children() if running else ():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)


def _pool(jobs: int) -> ProcessPoolExecutor | None:
    """Return processes to run in; None where runs go one after the other in this one."""
    # Spawned, not forked: PyTorch's thread pool does not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent) if jobs > 1 else None


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, and be it by SIGKILL."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start(pool: ProcessPoolExecutor | None, make: Make, config: ExperimentConfig) -> Future[None]:
    """Start a run in the pool; without one, make it here and now."""
    if pool is not None:
        return pool.submit(_made, make, config)
    future: Future[None] = Future()
    try:
        _made(make, config)
        future.set_result(None)
    except Exception as error:  # as a pool's process would hand it over
        future.set_exception(error)
    return future


def _made(make: Make, config: ExperimentConfig) -> None:
    """Make a run; what it found is in its directory, and need not travel between processes."""
    make(config)
