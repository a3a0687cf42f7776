"""The platform from Python: what the command line does, with objects in the place of names where that helps.

Everything here is exported by `cl_ovq` itself, which imports it when it is first used. Mistakes raise `UserError`, in
the line that the command line prints.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from cl_ovq.comparison import Comparison, load_group
from cl_ovq.comparison import compare as compare_groups
from cl_ovq.config import ExperimentConfig, from_dict
from cl_ovq.config.load import is_text_below, read_experiment
from cl_ovq.config.reading import IsText, write_override
from cl_ovq.errors import UserError
from cl_ovq.paths import safe_name
from cl_ovq.runs.given import Given, GivenModel, given
from cl_ovq.runs.groups import Group, comparable, group_of
from cl_ovq.runs.reevaluate import Evaluation, evaluate_finished
from cl_ovq.runs.result import Result
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.seeds import SeedsResult, run_seeds
from cl_ovq.seeding import unchanged_randomness
from cl_ovq.tracking import RUNS
from streams import Stream

if TYPE_CHECKING:
    from cl_ovq.audits import Audit
    from cl_ovq.studies import StudyResult
    from cl_ovq.sweeps.outcome import Outcome

Config = str | os.PathLike[str] | Mapping[str, Any] | ExperimentConfig
Overrides = Mapping[str, Any] | Sequence[str]
RunLike = str | os.PathLike[str] | Result

# Keys of a section that mean something for a model that was given as an object.
OF_ANY_MODEL = {"model": ("head", "train_encoder"), "dictionary": ("scope", "refresh"), "stream": ()}


def run(
    config: Config,
    overrides: Overrides | None = None,
    *,
    model: GivenModel | None = None,
    stream: Stream | None = None,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Result | SeedsResult:
    """Run an experiment, as `cl-ovq run` does; one that diverges is a result too, see `Result.diverged`.

    Random numbers and threads of the caller are as they were, afterwards.

    Args:
        config: name or path of an experiment, a mapping in the shape of its YAML file, or a loaded configuration.
        overrides: a mapping of dotted keys, `{"model.mixer": "softmax"}`, or texts as on the command line.
        model: takes the place of the configured one: a module, which is trained, or a function that makes one for a
            stream. It maps a batch of images to logits `[B, n_classes]`, or of sequences to what `SequenceModel` does.
        stream: takes the place of the configured one, which may be missing, e.g. `Stream.from_avalanche(benchmark)`.
        jobs: of several seeds, how many run at a time; more than one in processes of their own.
        resume: whether to go on from the checkpoint in `output_dir`; what was given as an object is to be given again.
        overwrite: whether to replace the run that `output_dir` holds.
        quiet: whether no progress is drawn on standard error.

    Returns:
        The result; those of all seeds where the configuration has more than one.

    Raises:
        UserError: something is wrong with the configuration, what was given, or data; nothing was written then.
    """
    with given(model, stream) as found, _undisturbed():
        loaded = found.config = _configuration(config, overrides, found)
        console = Console(quiet=True) if quiet else Console(stderr=True)
        if loaded.seeds == 1:
            if jobs > 1:
                raise UserError("jobs: with seeds=1 there is only one run")
            return run_experiment(loaded, console, resume=resume, overwrite=overwrite)
        if isinstance(model, nn.Module):
            raise UserError(
                f"seeds: {loaded.seeds} runs need one model each, but a single model was passed: pass a function "
                "that builds one"
            )
        return run_seeds(loaded, console, jobs=jobs, resume=resume, overwrite=overwrite)


def evaluate(
    run: RunLike,
    overrides: Overrides | None = None,
    *,
    model: GivenModel | None = None,
    stream: Stream | None = None,
    uri: str | None = None,
) -> Evaluation:
    """Evaluate a finished run on its own stream or another without training, as `cl-ovq evaluate` does.

    Args:
        run: a result, a run's directory or checkpoint, or its id or name in MLflow.
        overrides: of the sections `stream` and `evaluation`.
        model: where the run's was given as an object: it again, or what makes one like it; it stays as it is.
        stream: to be judged on; where the run's own was given as an object, that one.
        uri: MLflow's store; the default one if None.

    Raises:
        UserError: there is no such run, or the stream does not fit its model.
    """
    with given(model, stream, copied=True) as found, _undisturbed():
        changes = _texts(overrides)
        if stream is not None and not any(change.startswith("stream.") for change in changes):
            section = {f"stream.{key}": value for key, value in found.sections["stream"].items()}
            changes = [*_texts(section), *changes]
        return evaluate_finished(_name(run), changes, uri)


def audit(
    run: Config | Result,
    overrides: Overrides | None = None,
    *,
    model: GivenModel | None = None,
    stream: Stream | None = None,
    experiences: int = 2,
    quiet: bool = False,
) -> Audit:
    """Measure what reviewers ask of an experiment or a finished run, as `cl-ovq audit` does.

    Args:
        run: a result, a finished run's directory, or a configuration as `cl_ovq.run` takes it.
        overrides: a mapping of dotted keys, or texts as on the command line.
        model: takes the place of the configured one, see `cl_ovq.run`; a module stays as it is.
        stream: takes the place of the configured one.
        experiences: that audited runs learn at most.
        quiet: whether no progress is drawn on standard error.

    Raises:
        UserError: something is wrong with the configuration, what was given, or data.
    """
    from cl_ovq.audits import audit_config, audit_finished, finished_run

    console = Console(quiet=True) if quiet else Console(stderr=True)
    with given(model, stream, copied=True) as found, _undisturbed():
        named = run.output_dir if isinstance(run, Result) else run
        directory = finished_run(os.fspath(named)) if isinstance(named, str | os.PathLike) else None
        if directory is not None:
            return audit_finished(directory, _texts(overrides), console, experiences=experiences)
        loaded = found.config = _configuration(named, overrides, found)
        return audit_config(loaded, console, experiences=experiences)


def compare(runs: Sequence[RunLike | SeedsResult], *, uri: str | None = None) -> Comparison:
    """Compare runs with the first of them, as `cl-ovq compare` does.

    Args:
        runs: two or more, each a result, those of several seeds, a directory or file, or a run in MLflow.
        uri: MLflow's store; the default one if None.

    Raises:
        UserError: there is no such run, or they are not of one stream.
    """
    if isinstance(runs, str) or len(runs) < 2:
        raise UserError("compare needs a list of at least two runs")
    return compare_groups(comparable([_group(one, uri) for one in runs], [_name(one) for one in runs]))


def sweep(
    config: str | os.PathLike[str],
    overrides: Overrides | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Search for hyper-parameters with Ray Tune, as `cl-ovq sweep` does.

    Args:
        config: name or path of a sweep.
        overrides: of the sweep, or of its experiment for all trials.
        directory: holds everything of the sweep; `runs/sweeps/NAME` if None.
        resume: whether to go on with the sweep of the directory.
        quiet: whether no progress is drawn on standard error.

    Raises:
        UserError: something is wrong with the sweep, or its directory holds another.
    """
    from cl_ovq.sweeps import load_sweep
    from cl_ovq.sweeps.files import is_text_of_override
    from cl_ovq.sweeps.run import run_sweep

    loaded = load_sweep(os.fspath(config), _texts(overrides, is_text_of_override))
    home = RUNS / "sweeps" / safe_name(loaded.name) if directory is None else Path(directory)
    return run_sweep(loaded, home, Console(quiet=True) if quiet else Console(stderr=True), resume=resume)


def study(
    config: str | os.PathLike[str],
    overrides: Overrides | None = None,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    directory: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> StudyResult:
    """Run a grid of experiments over seeds, as `cl-ovq study` does; what its directory holds is not run again.

    Args:
        config: name or path of a study.
        overrides: for all rows, and `seeds`.
        only: labels of the rows to run; all if empty.
        jobs: runs at a time. More than one are in processes that import the caller's script again, which must guard
            what it does by `if __name__ == "__main__"`.
        directory: holds the runs; `runs/studies/NAME` if None.
        quiet: whether no progress is drawn on standard error.

    Raises:
        UserError: something is wrong with the study, or no run succeeded.
    """
    from cl_ovq import studies

    loaded = studies.only(studies.load_study(os.fspath(config), _texts(overrides)), only)
    home = RUNS / "studies" / safe_name(loaded.name) if directory is None else Path(directory)
    return studies.run_study(loaded, home, Console(quiet=True) if quiet else Console(stderr=True), jobs=jobs)


def load(run: RunLike, *, uri: str | None = None) -> Result:
    """Return the result of a finished run; `.model()` is its trained model.

    Args:
        run: its directory or `results.json`, or its id or name in MLflow.
        uri: MLflow's store; the default one if None.

    Raises:
        UserError: there is no such run, or several seeds are named.
    """
    group = _group(run, uri)
    if len(group.runs) > 1:
        raise UserError(f"'{_name(run)}' has runs with {len(group.runs)} seeds: choose one of them")
    return next(iter(group.runs.values()))


def _configuration(config: Config, overrides: Overrides | None, found: Given) -> ExperimentConfig:
    """Return a configuration with overrides, and with what is given in the place of what it names.

    A file's sections give way. What the caller himself says of a model or stream beside an object is a mistake.
    """
    unresolved: dict[str, tuple[Any, Any]] = {}
    if isinstance(config, ExperimentConfig):
        if not overrides and not found.sections:
            return copy.deepcopy(config)
        tree = asdict(config)
        tree["stream"] = {"name": config.stream.name, **asdict(config.stream.options)}
        unresolved = tree.pop("unresolved")
    elif isinstance(config, Mapping):
        tree = {str(key): copy.deepcopy(value) for key, value in config.items()}
        _check_sections(tree, found)
    else:
        tree = read_experiment(os.fspath(config), given=True)
    changes = _texts(overrides)
    for change in changes:
        section, _, key = change.partition("=")[0].partition(".")
        _check_sections({section: {key: None}}, found)
    for section in ("model", "dictionary") if "model" in found.sections else ():
        kept = tree.get(section) or {}
        tree[section] = {key: value for key, value in kept.items() if key in OF_ANY_MODEL[section]}
        tree[section] |= found.sections.get(section, {})
    if "stream" in found.sections:
        tree["stream"] = found.sections["stream"]
    loaded: Any = from_dict(tree, changes)
    loaded.unresolved = unresolved
    return loaded


def _check_sections(tree: Mapping[str, Any], found: Given) -> None:
    """Refuse what means nothing for a model or a stream that is an object."""
    sections = {"model": "model", "dictionary": "model", "stream": "stream"}
    for section, part in sections.items():
        if part not in found.sections or not isinstance(tree.get(section), Mapping):
            continue
        for key in tree[section]:
            if key not in OF_ANY_MODEL[section]:
                known = ", ".join(f"{section}.{name}" for name in OF_ANY_MODEL[section])
                rest = f": only {known} apply then" if known else ""
                raise UserError(f"{section}{key and '.'}{key}: the {part} is passed as an object{rest}: remove it")


def _texts(overrides: Overrides | None, is_text: IsText = is_text_below) -> list[str]:
    """Return overrides as the command line takes them."""
    if isinstance(overrides, str):
        raise UserError(f"overrides: '{overrides}' is a string: pass a list of strings or a dictionary")
    if isinstance(overrides, Mapping):
        return [write_override(str(key), _plain(value), is_text) for key, value in overrides.items()]
    return [str(text) for text in overrides or ()]


def _plain(value: Any) -> Any:
    """Return a value as YAML has it: paths as text, numbers of NumPy as Python's, tuples as lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def _name(run: RunLike | SeedsResult) -> str:
    if isinstance(run, SeedsResult):
        return str(Path(run.runs[0].output_dir).parent)
    return run.output_dir if isinstance(run, Result) else os.fspath(run)


def _group(run: RunLike | SeedsResult, uri: str | None) -> Group:
    if isinstance(run, Result | SeedsResult):
        return group_of(run.runs if isinstance(run, SeedsResult) else [run], _name(run))
    return load_group(os.fspath(run), uri)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave random numbers and threads of PyTorch as they were."""
    threads = torch.get_num_threads()
    try:
        with unchanged_randomness():
            yield
    finally:
        torch.set_num_threads(threads)
