"""The check of what hyper-parameters were chosen on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from cl_ovq.audits.findings import Finding, judged, not_applicable
from cl_ovq.audits.subject import Subject
from cl_ovq.config.identity import identity
from cl_ovq.config.protocols import STREAM
from cl_ovq.paths import RESULTS
from cl_ovq.runs.result import Result

OF_STUDY = re.compile(r"(test|validation)-seed-\d+-[0-9a-f]{12}")


def choices(subject: Subject) -> Finding:
    """Hyper-parameters are not chosen on test data.

    Measured, of a run that lies in the directory of a sweep or of a study's row: which split the runs judged that were
    to choose, whether they share a seed with those that are reported, and how many configurations were judged on the
    test split. Of any other run, or a configuration, nothing is known: no file says how its values came about.
    """
    split = subject.asked.evaluation.split
    if subject.source is None:
        return not_applicable(
            f"a configuration does not record how it was chosen; its metrics are on the {split} split"
        )
    run = subject.source.resolve()
    trials = next((parent for parent in run.parents[:2] if parent.name == "trials"), run.parent.parent / "trials")
    if trials in run.parents or (run.parent.name == "test" and trials.is_dir()):
        return _judged("sweep", (trials.parent / "test").glob(f"*/{RESULTS}"), _read(trials.rglob(RESULTS)))
    if OF_STUDY.fullmatch(run.name):
        return _judged("row of a study", run.parent.glob(f"*/{RESULTS}"))
    return not_applicable(f"a standalone run does not record how it was chosen; its metrics are on the {split} split")


def _read(paths: Iterable[Path]) -> list[Result]:
    return [Result.read(path) for path in sorted(paths)]


def _judged(what: str, paths: Iterable[Path], trials: list[Result] | None = None) -> Finding:
    """Judge the runs of a sweep or a row.

    Args:
        what: they are of.
        paths: of results; where there are no trials, of those that chose as well.
        trials: the runs that chose, if they lie elsewhere.
    """
    found = _read(paths)
    reported = found if trials is not None else [run for run in found if _split(run) != STREAM]
    choosing = trials if trials is not None else [run for run in found if _split(run) == STREAM]
    on_test = sum(_split(run) != STREAM for run in choosing)
    judged_on_test = {json.dumps(_training(run), sort_keys=True) for run in reported}
    shared = {run.config["seed"] for run in choosing} & {run.config["seed"] for run in reported}
    measured = {
        "choosing_runs": len(choosing),
        "of_them_on_test": on_test,
        "configurations_on_test": len(judged_on_test),
        "shared_seeds": len(shared),
    }
    if not choosing and len(judged_on_test) < 2:
        return not_applicable(f"this {what} made no selection", **measured)
    bad = [f"{on_test} of {len(choosing)} runs that chose judged the test split"] if on_test else []
    if len(judged_on_test) > 1:
        bad.append(f"{len(judged_on_test)} configurations were judged on the test split")
    if shared:
        bad.append(f"seeds {sorted(shared)} both chose and are reported")
    good = f"the {len(choosing)} runs that chose in this {what} judged validation data, on seeds of their own"
    return judged(bool(bad), f"of this {what} {'; '.join(bad)}", good, **measured)


def _split(run: Result) -> str:
    split: str = run.config["evaluation"]["split"]
    return split


def _training(run: Result) -> dict[str, object]:
    return {key: value for key, value in identity(run.config).training.items() if key != "seed"}
