"""Study files: which rows a study has, and how each is tuned. `docs/files.md` describes their format."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cl_ovq.config import ExperimentConfig, load_config, to_dict
from cl_ovq.config.check import checked_values
from cl_ovq.config.files import (
    as_mapping,
    files_by_name,
    find_file,
    read_mapping,
    shipped_folders,
)
from cl_ovq.config.keys import flatten
from cl_ovq.config.load import EXPERIMENTS, STUDIES, is_text_below
from cl_ovq.config.parts import UnusedKeyError
from cl_ovq.config.protocols import MOST_SEEDS, PROTOCOLS, check_protocol, check_seeds, check_validation
from cl_ovq.config.reading import Step, read_override, write_override
from cl_ovq.config.schema import option
from cl_ovq.errors import UserError, unknown
from cl_ovq.metric_names import is_foreign, known_metrics
from cl_ovq.studies.grid import Grid, points_of, read_grid
from cl_ovq.training import quantity_of

RESERVED = ("experiment", "tune")
MOST_CONFIGURATIONS = 5000  # of a study, each of which is checked before the first runs


@dataclass(frozen=True)
class Tuning:
    """How the hyper-parameters of every row are chosen: the best mean over seeds of a metric on validation data.

    Attributes:
        protocol: see `cl_ovq.config.protocols`.
        experiences: that tuning runs see (`first_k_experiences`); None for all.
        seeds: of the tuning runs; those that are reported are refused.
        metric: of the results matrix on the validation stream, at the end of the stream; the quantity of each row's
            stream if None.
        over_lengths: whether rows are judged by the mean of their quantity over `evaluation.lengths`, each length with
            the same weight, in place of a metric of the matrix.
        grid: values to choose from, by key; every combination is tried.
    """

    seeds: list[int] = option([100], "seeds of the tuning runs", minimum=0)  # noqa: RUF009 - option makes a field
    metric: str | None = option(None, "selection metric on validation data")
    over_lengths: bool = option(False, "select rows by the mean over evaluation.lengths")
    protocol: str = option("end_of_stream", "selection protocol on validation data", choices=tuple(PROTOCOLS))
    experiences: int | None = option(None, "number of experiences to learn (first_k_experiences)", minimum=1)
    grid: dict[str, Any] = option({}, "candidate values, by key")  # noqa: RUF009 - option makes a field


@dataclass(frozen=True)
class _TopKeys:
    """What a study file holds: see `Study`, and `set`, which is laid over the experiments of all rows."""

    title: str | None = None
    seeds: Any = 5
    set: dict[str, Any] | None = None
    tuning: dict[str, Any] | None = None
    refit: dict[str, str] | None = None
    reference: dict[str, str] | None = None
    grids: list[Any] | None = None


@dataclass(frozen=True)
class Row:
    """One row of a study.

    Attributes:
        labels: option by axis.
        experiment: name or path.
        overrides: of the experiment, by key.
        grid: values to choose from.
        allow_env: whether values may come from the environment.
    """

    labels: dict[str, str]
    experiment: str
    overrides: dict[str, Any]
    grid: Grid
    allow_env: bool = False

    @property
    def name(self) -> str:
        """The labels in one line."""
        return ", ".join(self.labels.values())

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The combinations of the grid."""
        return points_of(self.grid, lambda: flatten(to_dict(self.config({}, 0, "test"))))

    def config(
        self, point: Mapping[str, Any], seed: int, stream: str, experiences: int | None = None
    ) -> ExperimentConfig:
        """Return the configuration of a run.

        Args:
            point: chosen values by key.
            seed: the run's seed.
            stream: on which it is evaluated.
            experiences: that it sees; None for all.

        Raises:
            UserError: a key or value is wrong; the row is named.
        """
        changes = self.overrides | dict(point) | {"seed": seed, "seeds": 1, "evaluation.split": stream}
        if experiences is not None:
            changes["evaluation.stop_after"] = experiences
        try:
            overrides = [write_override(key, value, is_text_below) for key, value in changes.items()]
            return load_config(self.experiment, overrides, allow_env=self.allow_env, given=False)
        except UnusedKeyError as error:
            raise UserError(f"row '{self.name}': {error}: set it in the rows that have it") from error
        except UserError as error:
            raise UserError(f"row '{self.name}': {error}") from error

    def check(self, point: Mapping[str, Any]) -> None:
        """Check names and combinations too, which needs more than the schema.

        Raises:
            UserError: naming the row.
        """
        from cl_ovq.runs.checking import check_config

        config = self.config(point, 0, "test")
        try:
            check_config(config)
        except UserError as error:
            raise UserError(f"row '{self.name}': {error}") from error


@dataclass(frozen=True)
class Study:
    """A grid of experiments.

    Attributes:
        name: of the file.
        title: above the table.
        rows: in the order of the file.
        seeds: reported, on the test stream.
        tuning: on validation data.
        refit: labels of the rows whose forgetting is taken off that of the others on the same stream and seeds.
        reference: labels of the rows (joint or cumulative) that the intransigence of the others is measured against.
    """

    name: str
    title: str
    rows: list[Row]
    seeds: list[int]
    tuning: Tuning
    refit: dict[str, str]
    reference: dict[str, str]

    @property
    def axes(self) -> list[str]:
        """Names of all axes, in order."""
        return list(dict.fromkeys(axis for row in self.rows for axis in row.labels))


def only(study: Study, labels: Sequence[str]) -> Study:
    """Return a study with the rows that have certain labels: of every axis that one of them is of, one of those.

    Raises:
        UserError: no row has such a label, or none has them together.
    """
    rows = study.rows
    for axis in study.axes:
        known = dict.fromkeys(row.labels[axis] for row in study.rows if axis in row.labels)
        if wanted := [label for label in labels if label in known]:
            rows = [row for row in rows if row.labels.get(axis) in wanted]
    every = dict.fromkeys(label for row in study.rows for label in row.labels.values())
    for label in labels:
        if label not in every:
            raise unknown("label of a row", label, every)
    if not rows:
        raise UserError(f"no row of study '{study.name}' has the labels {', '.join(labels)} together")
    return replace(study, rows=rows)


def is_text_of_study(path: Sequence[Step]) -> bool:
    """Return whether a place in a study file holds text."""
    match list(path):
        case ["title"] | ["refit" | "reference", _] | ["tuning", "metric" | "protocol"]:
            return True
        case ["grids", _, _, _, "experiment"]:
            return True
        case ["set", *place]:
            return is_text_below(place)
        case ["tuning", "grid", key, *place] | ["grids", _, _, _, "tune", key, *place]:
            match place:
                case ["choice", _, *place] | [int(), *place]:
                    return is_text_below((key, *place))
                case ["when", other, *place]:  # a value, or a list of values
                    return is_text_below((other, *place[1:]))
            return False
        case ["grids", _, _, _, *place]:
            return is_text_below(place)
    return False


def list_studies() -> dict[str, Path]:
    """Return the studies under `experiments/studies/`, by name."""
    return files_by_name(folder / STUDIES for folder in shipped_folders(EXPERIMENTS))


def find_study(name: str) -> Path:
    """Return the file of a study, given as a path or by its name.

    Raises:
        UserError: there is none.
    """
    return find_file("study", name, list_studies())


def load_study(name: str, overrides: Sequence[str] = (), *, allow_env: bool = False) -> Study:
    """Read a study, and check every configuration that it leads to.

    Args:
        name: path of a YAML file, or the name of one under `experiments/studies/`.
        overrides: `key=value`, laid over `set` (so for all rows), or `seeds=N`, or `seeds=[10, 11]`.
        allow_env: whether what decides no result may be read from the environment, as `${oc.env:NAME}`.

    Raises:
        UserError: naming the key, the row, and what would be right.
    """
    path = find_study(name)
    tree = read_mapping(path, is_text_of_study)
    known = [key.name for key in fields(_TopKeys)]
    for key in tree:
        if key not in known:
            raise unknown("key of a study", str(key), known)
    top = _TopKeys(**checked_values("", _TopKeys, tree))
    common, wanted = dict(top.set or {}), top.seeds
    for override in overrides:
        key, parsed = read_override(override, "seeds=2", is_text_below)
        if key == "seeds":
            wanted = parsed
        else:
            common[key] = parsed
    seeds = _seeds(wanted)
    tuning = _tuning(top.tuning or {}, seeds)
    if not top.grids:
        raise UserError(f"{path}: grids: a study needs at least one grid")
    rows = [row for number, grid in enumerate(top.grids) for row in _rows(grid, f"grids[{number}]", common, tuning)]
    rows = [replace(row, allow_env=allow_env) for row in rows]
    if not rows:
        raise UserError(f"{path}: grids: an axis has no options, so there are no rows")
    names = Counter(row.name for row in rows)
    for name, count in names.items():
        if count > 1:
            raise UserError(f"{path}: two rows are named '{name}'")
    configurations = sum(math.prod(len(choice.values) for choice in row.grid.values()) for row in rows)
    if configurations > MOST_CONFIGURATIONS:
        raise UserError(
            f"{path}: {configurations:,} configurations to try, but a study may have at most {MOST_CONFIGURATIONS:,}"
        )
    for row in rows:
        for point in row.points:
            row.check(point)
        _check_tuning(row, tuning)
    refit, reference = top.refit or {}, top.reference or {}
    for key, labels in (("refit", refit), ("reference", reference)):
        if labels and not any(labels.items() <= row.labels.items() for row in rows):
            raise UserError(f"{key}: no row has the labels {labels}: known: {'; '.join(names)}")
    return Study(path.stem, top.title or path.stem, rows, seeds, tuning, refit, reference)


def _seeds(wanted: Any) -> list[int]:
    """The reported seeds: the first so many, or those of a list (fresh ones confirm what others led to)."""
    if isinstance(wanted, list):
        if not all(type(seed) is int and 0 <= seed < 2**63 for seed in wanted):
            raise UserError(f"seeds: {wanted!r} is not a list of non-negative 64-bit integers")
        check_seeds(wanted, "seeds")
        return wanted
    if type(wanted) is not int or wanted < 1:
        raise UserError(f"seeds: {wanted!r} is neither a positive integer nor a list of seeds")
    if wanted > MOST_SEEDS:
        raise UserError(f"seeds: {wanted} seeds are more than {MOST_SEEDS}")
    return list(range(wanted))


def _tuning(tree: dict[str, Any], reported: Sequence[int]) -> Tuning:
    known = [f.name for f in fields(Tuning)]
    for key in tree:
        if key not in known:
            raise unknown("key of tuning", key, known)
    tuning = Tuning(**checked_values("tuning", Tuning, tree))
    if tuning.over_lengths and tuning.metric is not None:
        raise UserError("tuning: metric and over_lengths cannot be combined: remove one")
    check_protocol(
        tuning.protocol, experiences=tuning.experiences, seeds=tuning.seeds, reported=reported, section="tuning"
    )
    read_grid(tuning.grid, "tuning.grid")
    return tuning


def _check_tuning(row: Row, tuning: Tuning) -> None:
    """Refuse to tune a row by what its stream does not measure, or does not have the data for."""
    config = row.config(row.points[0], 0, "test")  # which imports the parts that it names, metrics among them
    if tuning.metric is not None and tuning.metric not in known_metrics():
        raise unknown("metric at tuning.metric", tuning.metric, known_metrics())
    if len(row.points) < 2:
        return
    stream = config.stream
    own = quantity_of(stream.name)
    if tuning.over_lengths and not config.evaluation.lengths:
        raise UserError(f"row '{row.name}': tuning.over_lengths: evaluation.lengths is empty")
    if tuning.metric is not None and is_foreign(tuning.metric, own):
        raise UserError(
            f"row '{row.name}': tuning.metric: '{stream.name}' has no {tuning.metric}: remove it to tune every row by "
            f"its stream's own metric ({own})"
        )
    try:
        check_validation(stream.options)
    except UserError as error:
        raise UserError(f"row '{row.name}': {error}") from error


def _rows(grid: Any, name: str, common: Mapping[str, Any], tuning: Tuning) -> list[Row]:
    """The rows of one grid: every combination of its axes' options."""
    axes = {axis: as_mapping(options, f"{name}.{axis}") for axis, options in as_mapping(grid, name).items()}
    count = math.prod(map(len, axes.values()))
    if count > MOST_CONFIGURATIONS:
        raise UserError(f"{name}: {count:,} rows, but a study may have at most {MOST_CONFIGURATIONS:,}")
    rows = []
    for labels in itertools.product(*axes.values()):
        options = [
            as_mapping(axes[axis][label] or {}, f"{name}.{axis}.{label}")
            for axis, label in zip(axes, labels, strict=True)
        ]
        overrides, values, experiment = dict(common), read_grid(tuning.grid, "tuning.grid"), None
        for chosen in options:
            overrides |= {key: value for key, value in chosen.items() if key not in RESERVED}
            experiment = chosen.get("experiment", experiment)
            if not isinstance(experiment, str | None):
                raise UserError(f"{name}: experiment: {experiment!r} is not the name of an experiment")
        for chosen in options:
            if "tune" in chosen:
                own = read_grid(chosen["tune"] or {}, f"{name}: tune")
                values = values | own if chosen["tune"] is not None else {}
        if experiment is None:
            raise UserError(f"{name}: row '{', '.join(labels)}' names no experiment")
        rows.append(Row(dict(zip(axes, labels, strict=True)), experiment, overrides, values))
    return rows
