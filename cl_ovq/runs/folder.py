"""Folders that runs write into: one run at a time, and never over what another one has found."""

from __future__ import annotations

import contextlib
import copy
import datetime
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError
from cl_ovq.paths import FIGURE_FORMATS, RESULTS, expanded, is_there, make_folder, safe_name
from cl_ovq.runs.checkpoints.files import NAME as CHECKPOINT
from cl_ovq.runs.checkpoints.history import NAME as HISTORY
from cl_ovq.tracking import RUNS

LOCK = ".lock"
SEEDS = "seeds.json"
PATIENCE_SECONDS = 2.0  # the processes of a run that was killed may take a moment to die
KEPT = {  # what a folder may hold that a new run would overwrite
    RESULTS: "the results of a run",
    CHECKPOINT: "the checkpoint of a run",
    SEEDS: "the results of seeds",
}
# What else a run writes, by names that the next one may not write again.
OF_DICTIONARIES = ("dictionary_growth", "dictionary_owners", "dictionary_entries")
FIGURES = ("matrix", "over_experiences", "by_age", "anytime", "lengths", *OF_DICTIONARIES)
DRAWN = tuple(f"{name}.{kind}" for name in FIGURES for kind in FIGURE_FORMATS)
WRITTEN = (*KEPT, HISTORY, "config.yaml", "model.pt", *DRAWN)


@contextlib.contextmanager
def locked(folder: Path, key: str, patience: float | None = None) -> Iterator[Path]:
    """Hold a folder for as long as the `with` block; it is made if need be, and removed again if it stays empty.

    The system takes the lock away when the process dies, however it dies. Temporary files that dead processes have left
    are removed.

    Args:
        folder: to be written into.
        key: what named it, for messages.
        patience: seconds for which its holder is waited for; those that a killed process may take if None.

    Raises:
        UserError: another run holds it, or it cannot be made or written to.
    """
    with _removed_if_empty([path for path in (folder, *folder.parents) if not is_there(path)]):
        lock = _lock(folder, key, PATIENCE_SECONDS if patience is None else patience)
        try:
            for left in (left for name in WRITTEN for left in folder.glob(f".{name}.*")):
                pid = left.name.rpartition(".")[2]
                if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                    left.unlink(missing_ok=True)
            yield folder
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            os.close(lock)


@contextlib.contextmanager
def _removed_if_empty(folders: Sequence[Path]) -> Iterator[None]:
    """Remove folders at the end, the first one first, as far as they are empty."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in folders:
                folder.rmdir()


def _lock(folder: Path, key: str, patience: float) -> int:
    """Return the descriptor that holds the lock."""
    deadline = time.monotonic() + patience
    while True:
        make_folder(folder, key)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # whoever made the folder has removed it again
            continue
        except OSError as error:
            raise UserError(f"{key}: cannot write into the directory {folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:  # not one that its last holder has removed
                return lock
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(lock)
                raise UserError(f"{key}: another run is writing into {folder}") from error
        except OSError as error:
            os.close(lock)
            raise UserError(f"{key}: cannot lock the directory {folder}: {error.strerror}") from error
        os.close(lock)
        time.sleep(0.02)


@contextlib.contextmanager
def run_folder(config: ExperimentConfig, name: str, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Hold the folder of a run, or of several seeds: the configured one, or a new one under `runs/`.

    Args:
        config: of the run.
        name: of the run; that of a new folder.
        resume: whether it goes on with the run that the folder may hold.
        overwrite: whether it takes the place of the run that the folder may hold, see `clear`.

    Raises:
        UserError: see `locked`; or it holds what would be overwritten.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite cannot be combined: one continues the run, the other deletes it")
    with contextlib.ExitStack() as held:
        if config.output_dir is None:
            folder = held.enter_context(_new_folder(config, name))
        else:
            folder = expanded(config.output_dir)
        held.enter_context(locked(folder, "output_dir"))
        if config.output_dir is not None and not overwrite:
            check_output_dir(config, resume=resume)
        yield folder


@contextlib.contextmanager
def _new_folder(config: ExperimentConfig, name: str) -> Iterator[Path]:
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    parent = RUNS / config.stream.name
    with _removed_if_empty([path for path in (parent, *parent.parents) if not is_there(path)]):
        make_folder(parent, "output_dir")
        for attempt in range(1000):
            folder = parent / (f"{safe_name(name)}-{moment}" + (f"-{attempt}" if attempt else ""))
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"output_dir: cannot make the directory {folder}: {error.strerror}") from error
            with _removed_if_empty([folder]):
                yield folder
            return
        raise UserError(f"output_dir: no free directory name under {parent}")


def check_output_dir(config: ExperimentConfig, *, resume: bool = False) -> None:
    """Check that a run will not write over what another one has found.

    Args:
        config: of the run; several seeds and a single run are not kept in the same folder.
        resume: whether it goes on with the run that the folder holds.

    Raises:
        UserError: it would.
    """
    if config.output_dir is None:
        return
    folder, own = expanded(config.output_dir), ((SEEDS,) if config.seeds > 1 else (RESULTS, CHECKPOINT))
    for name, what in KEPT.items():
        if (resume and name in own) or not is_there(folder / name):
            continue
        way = "--overwrite to replace it, or choose another directory"
        if name == CHECKPOINT:
            way = f"--resume to continue it, {way}"
        raise UserError(f"output_dir: {config.output_dir} already holds {what}: add {way}")
    if config.seeds > 1 and not resume:
        for seed in seeds_of(config):
            check_output_dir(for_seed(config, seed, folder))


def seeds_of(config: ExperimentConfig) -> range:
    """Return the seeds of a configuration."""
    return range(config.seed, config.seed + config.seeds)


def for_seed(config: ExperimentConfig, seed: int, folder: Path) -> ExperimentConfig:
    """Return the configuration of one of several seeds, which has a folder of its own under theirs."""
    run: Any = copy.deepcopy(config)
    run.seed, run.seeds = seed, 1
    run.output_dir = str(folder / f"seed_{seed}")
    return run


def clear(folder: Path) -> None:
    """Remove what an earlier run has left in a folder; other files are left alone, and what is still to be tracked.

    Raises:
        UserError: it cannot be removed.
    """
    for name in WRITTEN:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--overwrite: cannot remove {folder / name}: {error.strerror}") from error
