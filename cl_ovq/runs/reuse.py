"""Finished runs, found by what decides their numbers, so that nothing is trained or measured twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.identity import differences, fingerprint, identity
from cl_ovq.errors import UserError
from cl_ovq.evaluation.records import Generalization
from cl_ovq.paths import RESULTS, make_folder
from cl_ovq.runs.checkpoints.files import NAME as CHECKPOINT
from cl_ovq.runs.folder import KEPT, SEEDS, WRITTEN
from cl_ovq.runs.result import Result

# What may change and leave valid what was measured: each record says itself which length and capacity it is of.
LISTS = {"evaluation.lengths", "evaluation.capacities"}


class Fingerprints(NamedTuple):
    """What tells runs apart: by what decides their training, and by all that decides their numbers."""

    training: str
    whole: str


def fingerprints(config: ExperimentConfig | dict[str, Any]) -> Fingerprints:
    """Return those of a configuration, or of one that was stored."""
    found = identity(to_dict(config) if isinstance(config, ExperimentConfig) else config)
    return Fingerprints(fingerprint(found.training), fingerprint(found.whole))


class FinishedRuns:
    """Directories of finished runs, by fingerprint.

    Args:
        directories: of runs; those that hold no results that can be read are passed over.
    """

    def __init__(self, directories: Iterable[Path] = ()) -> None:
        self._found: dict[Path, Fingerprints] = {}
        self._imports: dict[Path, dict[str, list[str]]] = {}
        for directory in directories:
            self.add(directory)

    @classmethod
    def under(cls, folder: Path) -> FinishedRuns:
        """Return all that are anywhere under a folder."""
        return cls(path.parent for path in sorted(folder.rglob(RESULTS)))

    def add(self, directory: Path) -> None:
        """Take in a run, or take it in anew."""
        self._found.pop(directory, None)
        try:
            result = Result.read(directory)
            self._found[directory] = fingerprints(result.config)
            self._imports[directory] = result.provenance.get("imports", {})
        except UserError:  # damaged, or of a later version
            return

    def __getitem__(self, directory: Path) -> Fingerprints:
        return self._found[directory]

    def same(self, own: Fingerprints) -> list[Path]:
        """Return the runs that give the numbers of a configuration."""
        return [directory for directory, found in self._found.items() if found == own]

    def trained(self, own: Fingerprints) -> list[Path]:
        """Return the runs whose trained model is that of a configuration, and is kept; those of `same` come first."""
        alike = [directory for directory, found in self._found.items() if found.training == own.training]
        kept = [directory for directory in alike if (directory / CHECKPOINT).exists()]
        return list(dict.fromkeys([*self.same(own), *kept]))

    def imports(self, wanted: Iterable[Fingerprints] | None = None) -> dict[str, list[str]]:
        """Return the digests of the imports that runs were made with, see `cl_ovq.imports.with_digests`.

        Args:
            wanted: of the configurations whose training may be taken from them; all runs count if None.
        """
        training = None if wanted is None else {own.training for own in wanted}
        found: dict[str, list[str]] = {}
        for directory, own in self._found.items():
            if training is None or own.training in training:
                for name, digests in self._imports[directory].items():
                    found.setdefault(name, []).extend(digests)
        return found

    def move(self, source: Path, target: Path) -> None:
        """Give a run another directory, which is not there.

        Raises:
            OSError: it stays where it was.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        self._found[target] = self._found.pop(source)
        self._imports[target] = self._imports.pop(source)


def holds_run(directory: Path) -> bool:
    """Return whether a directory holds a run that is to go on, or is finished."""
    return any((directory / name).exists() for name in KEPT)


def copy_run(source: Path, target: Path) -> None:
    """Copy what a finished run has written; its results come last, so that a part of it is no finished run.

    Raises:
        UserError: the folder cannot be made.
        OSError: not all of it can be copied.
    """
    make_folder(target, "output_dir")
    for name in WRITTEN:
        if name not in (RESULTS, SEEDS) and (source / name).is_file():
            temporary = target / f".{name}.{os.getpid()}"
            try:
                shutil.copyfile(source / name, temporary)
                temporary.replace(target / name)
            finally:
                temporary.unlink(missing_ok=True)
    replace(Result.read(source), output_dir=str(target)).write(target)


def still_valid(earlier: Result, config: ExperimentConfig) -> Generalization:
    """Return what a finished run has measured on its model in the way in which a configuration asks for it.

    Args:
        earlier: its result.
        config: one that differs in what is measured on the finished model alone.
    """
    changed = differences(identity(earlier.config).evaluation, identity(to_dict(config)).evaluation)
    if changed.keys() - LISTS:
        return {"lengths": [], "capacities": []}
    return {"lengths": earlier.lengths, "capacities": earlier.capacities}


def complete(earlier: Result, config: ExperimentConfig) -> Result | None:
    """Return the result that a finished run has under a configuration; None if its model is to be asked for it.

    Args:
        earlier: its result.
        config: one that differs in what is measured on the finished model alone.
    """
    asked, found = config.evaluation, still_valid(earlier, config)
    if earlier.diverged is not None:
        cut_short = None in earlier.matrix[-1]  # there is no trained model; else it failed at some length only
        return replace(earlier, config=to_dict(config)) if cut_short else None
    lengths = {record["tokens"]: record for record in found["lengths"]}
    capacities = {(record["capacity"], record["tokens"]): record for record in found["capacities"]}
    pairs = [(capacity, length) for capacity in asked.capacities for length in asked.lengths]
    missing = {*asked.lengths} - lengths.keys() or {*pairs} - capacities.keys()
    if missing or (asked.capacities and not asked.lengths):  # the latter are at the length that was trained on
        return None
    return replace(
        earlier,
        config=to_dict(config),
        lengths=[lengths[length] for length in asked.lengths],
        capacities=[capacities[pair] for pair in pairs],
    )
