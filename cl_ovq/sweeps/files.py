"""Sweep files: read, checked, and turned into the configurations of trials.

    title: Learning rate and capacity
    experiment: quickstart
    set: {strategy.epochs: 2}                      # for all trials
    space:
      optimizer.learning_rate: {loguniform: [1e-4, 1e-2]}
      dictionary.capacity: {choice: [64, 256]}
    objectives: {accuracy: max}                    # of the results matrix on the validation stream, and memory_bytes;
                                                   # if left out, the stream's own: accuracy, or a loss, to be least
    search: {name: random, trials: 16}
    scheduler: {name: asha}

`schema.py` lists the sections' fields; `space.py` the kinds of values.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cl_ovq.config import ExperimentConfig, from_dict
from cl_ovq.config.check import checked_values, holds_text
from cl_ovq.config.files import (
    as_mapping,
    files_by_name,
    find_file,
    read_mapping,
    shipped_folders,
)
from cl_ovq.config.load import is_text_below, read_experiment
from cl_ovq.config.parts import UnusedKeyError, owners
from cl_ovq.config.protocols import STREAM, check_protocol, check_stream, check_validation
from cl_ovq.config.reading import Step, read_override, write_override
from cl_ovq.errors import UserError, nearest, unknown
from cl_ovq.metric_names import QUANTITIES, is_foreign, known_metrics
from cl_ovq.sweeps.schema import (
    MODES,
    MOST_TRIALS,
    SECTIONS,
    BudgetOptions,
    ClusterOptions,
    ResourceOptions,
    SchedulerOptions,
    SearchOptions,
    SelectionOptions,
    TopKeys,
)
from cl_ovq.sweeps.space import LISTS, Point, Space, read_space
from cl_ovq.training import quantity_of
from cl_ovq.uris import redact_tree

FOLDER = "ray_configs"
BYTES = "memory_bytes"
TOP = (*(field.name for field in fields(TopKeys)), *SECTIONS)
# What belongs to the sweep, and so to none of its trials.
OWN = ("seed", "seeds", "output_dir", "evaluation.split", "evaluation.stop_after", "checkpoint.enabled")
CHECKED_POINTS = 64
CHECKED_CELLS = 256  # combinations of parts


@dataclass(frozen=True)
class Sweep:
    """A sweep, checked.

    Attributes:
        name: of the file.
        title: in words.
        experiment: name or path of the experiment.
        tree: the experiment as read.
        settings: laid over it in every trial.
        space: what is varied.
        objectives: `max` or `min` by metric; the first one decides which trial is best.
        compare: keys; the best trial of every combination of their values is shown.
        search: how the space is searched.
        scheduler: which trials go on.
        selection: how the best one is chosen and reported.
        resources: of a trial.
        budget: where to stop.
        cluster: where trials run.
        reuse: folder in which runs that are done already are looked for; None for none.
        allow_env: whether values may come from the environment, of whichever machine a trial runs on.
    """

    name: str
    title: str
    experiment: str
    tree: dict[str, Any]
    settings: Point
    space: Space
    objectives: dict[str, str]
    compare: list[str]
    search: SearchOptions
    scheduler: SchedulerOptions
    selection: SelectionOptions
    resources: ResourceOptions
    budget: BudgetOptions
    cluster: ClusterOptions
    reuse: str | None
    allow_env: bool = False

    def overrides(self, point: Point, seed: int, *, stream: str = STREAM) -> Point:
        """Return what a run's configuration has other than its experiment.

        Args:
            point: of the space.
            seed: of the run.
            stream: on which it is evaluated.
        """
        own: Point = {"seed": seed, "evaluation.split": stream}
        if stream == STREAM and self.selection.experiences is not None:
            own["evaluation.stop_after"] = self.selection.experiences
        return self.settings | point | own

    def config(self, point: Point, seed: int, *, stream: str = STREAM, more: Point | None = None) -> ExperimentConfig:
        """Return the configuration of a run; `more` is laid over everything else.

        Raises:
            UserError: a key or value is wrong.
        """
        changes = {"threads": max(1, int(self.resources.cpus)), "tracking.log_model": False, "seeds": 1}
        changes |= self.overrides(point, seed, stream=stream) | (more or {})
        return from_dict(self.tree, to_overrides(changes), allow_env=self.allow_env)

    def points(self) -> list[Point] | None:
        """Return the points of all trials in order; None where they depend on results."""
        if self.search.name == "grid":
            return self.space.combinations(("grid", "choice"))
        if self.search.name == "random":
            assert self.search.trials is not None
            return self.space.draws(self.search.trials, self.search.seed)
        return None

    @property
    def trials(self) -> int:
        """Number of trials."""
        return self.space.count(("grid", "choice")) if self.search.name == "grid" else int(self.search.trials or 0)

    @property
    def primary(self) -> str:
        """The objective that decides."""
        return next(iter(self.objectives))

    def definition(self) -> dict[str, Any]:
        """Return what decides the trials, as it may be stored: a sweep can go on only where this is the same."""
        own, indifferent = redact_tree(asdict(self)), ("allow_env", "budget", "cluster", "compare", "reuse", "title")
        return json.loads(json.dumps({key: own[key] for key in own if key not in indifferent}))


def to_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return the `key=value` overrides that are read as these changes."""
    return [write_override(key, value, is_text_below) for key, value in changes.items()]


def is_text_of_sweep(path: Sequence[Step]) -> bool:
    """Return whether a place in a sweep file holds text."""
    match list(path):
        case ["title" | "experiment" | "reuse"] | ["objectives" | "compare", _]:
            return True
        case ["set", *place]:
            return is_text_below(place)
        case ["space", _, "when", key, *place]:  # a value, or a list of values
            return is_text_below((key, *place[1:]))
        case ["space", key, str(kind), _, *place] if kind in LISTS:
            return is_text_below((key, *place))
        case [section, *place] if section in SECTIONS:
            return holds_text(SECTIONS[section], place)
    return False


def is_text_of_override(path: Sequence[Step]) -> bool:
    """Return whether a place in an override of a sweep, whose first step is its key, holds text."""
    return is_text_of_sweep((*_place(str(path[0])), *path[1:]))


def list_sweeps() -> dict[str, Path]:
    """Return the sweeps that can be named without a path, by name."""
    return files_by_name(shipped_folders(FOLDER))


def find_sweep(name: str) -> Path:
    """Return the file of a sweep, given as a path or by its name under `ray_configs/`.

    Raises:
        UserError: there is none.
    """
    return find_file("sweep", name, list_sweeps())


def load_sweep(name: str, overrides: Sequence[str] = (), *, allow_env: bool = False) -> Sweep:
    """Read a sweep file, and check it and the configurations that it leads to.

    Args:
        name: path of a YAML file, or the name of one under `ray_configs/`.
        overrides: `key=value`: of the sweep, as `search.trials=4` or `space.model.width={choice: [8, 16]}`, or of the
            experiment, for all trials.
        allow_env: whether what decides no result may be read from the environment, as `${oc.env:NAME}`.

    Raises:
        UserError: naming the key, and what would be right.
    """
    path = find_sweep(name)
    tree = read_mapping(path, is_text_of_sweep)
    for key in tree:
        if key not in TOP:
            raise unknown("key of a sweep", key, TOP)
    _override(tree, overrides)
    sections = {section: _section(section, cls, tree.pop(section, None) or {}) for section, cls in SECTIONS.items()}
    top = TopKeys(**checked_values("", TopKeys, tree))
    if top.experiment is None or top.space is None:
        raise UserError(f"{path}: {'experiment' if top.experiment is None else 'space'}: required in a sweep")
    space = read_space(top.space)
    sweep = Sweep(
        name=path.stem,
        title=top.title or path.stem,
        experiment=top.experiment,
        tree=read_experiment(top.experiment),
        settings=top.set or {},
        space=space,
        compare=_compared(top.compare or [], space),
        objectives=_objectives(top.objectives or {}),
        reuse=top.reuse,
        allow_env=allow_env,
        **sections,
    )
    _check(sweep)
    if sweep.objectives:
        return sweep
    quantity = quantity_of(sweep.config(next(space.samples()), 0).stream.name)
    return replace(sweep, objectives={quantity: "max" if QUANTITIES[quantity] > 0 else "min"})


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Lay `key=value` over a sweep file: over its own sections, or else over `set`."""
    for override in overrides:
        key, value = read_override(override, "search.trials=4", is_text_of_override)
        section, *inner = _place(key)
        if not inner:
            tree[section] = value
            continue
        tree[section] = as_mapping(tree.get(section) or {}, section) | {inner[0]: value}
        if value is None and section == "space":
            del tree[section][inner[0]]


def _place(key: str) -> tuple[str, ...]:
    """Return where in a sweep file an override of a key belongs."""
    section, dot, inner = key.partition(".")
    if key in TOP and key not in SECTIONS:
        return (key,)
    return (section, inner) if section in TOP and dot else ("set", key)


def _section(section: str, cls: Any, values: Any) -> Any:
    values = as_mapping(values, section)
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            raise UserError(
                f"unknown key '{section}.{key}'{nearest(key, known, prefix=f'{section}.') or ':'} known: "
                f"{', '.join(sorted(known))}"
            )
    return cls(**checked_values(section, cls, values))


def _objectives(objectives: dict[str, str]) -> dict[str, str]:
    for metric, mode in objectives.items():
        if metric not in (known := (*known_metrics(), BYTES)):
            raise unknown("metric of objectives", metric, known)
        if mode not in MODES:
            raise unknown(f"mode at objectives.{metric}", mode, MODES)
    return objectives


def _compared(keys: list[str], space: Space) -> list[str]:
    listed = [parameter.key for parameter in space.parameters if parameter.kind in LISTS]
    for key in keys:
        if key not in listed:
            raise unknown("key at compare, which must be one with a list of values in the space,", key, listed)
    return keys


def _check(sweep: Sweep) -> None:
    """Check what needs more than one section."""
    for key in OWN:
        for section, keys in (("set", sweep.settings), ("space", [p.key for p in sweep.space.parameters])):
            if key in keys and key == "evaluation.split" and section == "set":
                check_stream(str(sweep.settings[key]))
            elif key in keys:
                raise UserError(
                    f"{section}.{key}: the sweep sets this key itself: see its sections selection and search"
                )
    for parameter in sweep.space.parameters:
        if parameter.key in ("tracking", "tracking.uri"):  # an address among the values would be in every table
            raise UserError(f"space.{parameter.key}: this key cannot vary between trials: put it under set")
    given = sweep.tree.get("evaluation") or {}
    if isinstance(given, Mapping) and "split" in given:
        check_stream(str(given["split"]), f"experiment {sweep.experiment}: evaluation.split")
    selection = sweep.selection
    check_protocol(
        selection.protocol,
        experiences=selection.experiences,
        seeds=selection.seeds,
        reported=range(selection.test_seeds),
        section="selection",
    )
    if sweep.resources.gpus > 1 and sweep.resources.gpus % 1:
        raise UserError(f"resources.gpus: {sweep.resources.gpus} is neither an integer nor a fraction below one")
    _check_search(sweep)
    _check_points(sweep)


def adjustable() -> list[str]:
    """Return the keys whose value a trial may change as it goes, as their parts say (`option(adjustable=True)`)."""
    every = ((owner.section, field) for owner in owners() for field in fields(owner.options))
    return list(dict.fromkeys(f"{section}.{f.name}" for section, f in every if f.metadata.get("adjustable")))


def _check_search(sweep: Sweep) -> None:
    search, scheduler, parameters = sweep.search, sweep.scheduler, sweep.space.parameters
    if search.name != "grid" and search.trials is None:
        raise UserError(f"search.trials: the search '{search.name}' needs a number of trials")
    if search.name == "grid":
        for parameter in parameters:
            if parameter.kind not in ("grid", "choice"):
                raise UserError(f"space.{parameter.key}: a grid needs a list of values, not {parameter.kind}")
        if search.trials is not None:
            raise UserError("search.trials: a grid determines the number of trials: remove it")
        if sweep.trials > MOST_TRIALS:
            raise UserError(
                f"space: the grid has {sweep.trials:,} combinations, but a sweep may have at most {MOST_TRIALS:,}"
            )
    elif search.name == "random":
        cells = sweep.space.count()
        if int(search.trials or 0) % cells:
            raise UserError(
                f"search.trials: {search.trials} trials cannot be split evenly among the {cells} combinations of "
                f"{', '.join(sweep.space.grids)}"
            )
    elif sweep.space.grids:
        raise UserError(f"space.{sweep.space.grids[0]}: Optuna draws values: use choice, not grid")
    if search.name == "tpe" and len(sweep.objectives) > 1:
        raise UserError("search.name: tpe supports one objective: use search.name=pareto for several")
    if search.name == "pareto" and len(sweep.objectives) < 2:
        raise UserError("objectives: the search 'pareto' needs at least two: e.g. {accuracy: max, memory_bytes: min}")
    if scheduler.name != "none" and BYTES in sweep.objectives:
        raise UserError(f"scheduler.name: {scheduler.name} compares trials before their end, when {BYTES} is not known")
    if scheduler.name == "pbt":
        if search.name != "random":
            raise UserError("search.name: population-based training starts from random points: use search.name=random")
        for parameter in parameters:
            if len(sweep.selection.seeds) > 1:
                raise UserError(
                    "selection.seeds: population-based training changes runs while they train, so it needs exactly "
                    "one seed"
                )
            if parameter.key not in (known := adjustable()):
                raise unknown("key that a trial can change as it goes (scheduler pbt)", parameter.key, known)


def _check_points(sweep: Sweep) -> None:
    """Check the configurations of trials: every value and every combination of parts, and the first trials whole."""
    from cl_ovq.runs.checking import check_config

    choices = {f"{choice.section}.{choice.field}" for owner in owners() if (choice := owner.choice) is not None}
    cells = itertools.islice(sweep.space.cells(choices), CHECKED_CELLS)
    points = [*sweep.space.samples(), *cells, *(sweep.points() or [])[:CHECKED_POINTS]]
    seen: list[Point] = []
    for point in points:
        if point in seen:
            continue
        seen.append(point)
        try:
            # Without its device, which a cluster may have and this machine not.
            config = sweep.config(point, sweep.selection.seeds[0], more={"device": "cpu"})
            check_config(config)
        except UserError as error:
            varied = ", ".join(f"{key}={value}" for key, value in point.items())
            raise UserError(f"trial with {varied}: {error}{_advice(sweep, error)}") from error
        for metric in sweep.objectives:
            if is_foreign(metric, own := quantity_of(config.stream.name)):
                raise UserError(f"objectives.{metric}: '{config.stream.name}' has no {metric}: its own is {own}")
        check_validation(config.stream.options)


def _advice(sweep: Sweep, error: UserError) -> str:
    """Return what to write where trials differ in whether they have a key."""
    if not isinstance(error, UnusedKeyError) or error.choice not in [p.key for p in sweep.space.parameters]:
        return ""
    tried = next(p.values for p in sweep.space.parameters if p.key == error.choice)
    when = f"when: {{{error.choice}: [{', '.join(name for name in error.having if name in tried)}]}}"
    if error.key in sweep.settings:
        return f": move it from set to space as {{choice: [{sweep.settings[error.key]}], {when}}}"
    return f": add to it in the space: {when}"
