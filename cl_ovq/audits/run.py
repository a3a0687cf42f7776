"""Audits a configuration: every check in turn, on runs that it makes and removes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cl_ovq.audits.answers import batch_independence, task_labels
from cl_ovq.audits.choices import choices
from cl_ovq.audits.findings import STYLES, Audit, Finding
from cl_ovq.audits.frozen import frozen_parts
from cl_ovq.audits.memory import memory
from cl_ovq.audits.repetition import class_order, repeats, resumes
from cl_ovq.audits.samples import disjoint_data, past_samples
from cl_ovq.audits.subject import Subject
from cl_ovq.config import ExperimentConfig
from cl_ovq.config.load import from_stored
from cl_ovq.errors import UserError
from cl_ovq.paths import RESULTS, is_file, is_folder
from cl_ovq.runs.result import Result
from cl_ovq.runs.setup import quiet
from cl_ovq.seeding import unchanged_randomness

EXPERIENCES = 2  # that audited runs learn, unless more are asked for
# Those that read how a run has ended come before those that evaluate it again.
CHECKS: tuple[Callable[[Subject], Finding], ...] = (
    disjoint_data,
    class_order,
    choices,
    past_samples,
    frozen_parts,
    memory,
    batch_independence,
    task_labels,
    repeats,
    resumes,
)


def audit_config(
    config: ExperimentConfig, console: Console, *, experiences: int = EXPERIENCES, source: Path | None = None
) -> Audit:
    """Audit a configuration.

    Args:
        config: a loaded configuration.
        console: where progress is drawn.
        experiences: that audited runs learn at most.
        source: directory of the finished run whose configuration it is.

    Raises:
        UserError: the configuration is wrong, its data is missing, or a run of it diverges.
    """
    quiet()
    findings = []
    with tempfile.TemporaryDirectory(prefix="cl-ovq-audit-") as folder, unchanged_randomness():
        subject = Subject(config, experiences, Path(folder), source)
        for number, check in enumerate(CHECKS, start=1):
            words = check.__name__.replace("_", " ")
            with console.status(f"{words} ({number} of {len(CHECKS)})"):
                finding = replace(check(subject), check=check.__name__)
            findings.append(finding)
            console.print(f"[{STYLES[finding.verdict]}]{finding.verdict}[/] {words}", highlight=False)
    return Audit(subject.name, subject.shrunk, findings)


def finished_run(name: str) -> Path | None:
    """Return the directory of the finished run that a name stands for; None where it stands for a configuration.

    Raises:
        UserError: it is a directory that holds no results of one run.
    """
    path = Path(name)
    if path.name == RESULTS and is_file(path):
        return path.parent
    if not is_folder(path):
        return None
    if not is_file(path / RESULTS):
        raise UserError(f"{path} contains no results ({RESULTS}): give the directory of a finished run")
    return path


def audit_finished(
    directory: Path, overrides: Sequence[str], console: Console, *, experiences: int = EXPERIENCES
) -> Audit:
    """Audit the configuration of a finished run. Nothing that its files name is imported.

    Args:
        directory: of the run.
        overrides: `key=value`.
        console: see `audit_config`.
        experiences: see `audit_config`.

    Raises:
        UserError: there is no finished run, it needs parts that are not imported, or see `audit_config`.
    """
    result = Result.read(directory)
    config = from_stored(result.config, overrides, result.provenance.get("imports", {}))
    return audit_config(config, console, experiences=experiences, source=directory)
