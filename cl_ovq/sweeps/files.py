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

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cl_ovq.config import ExperimentConfig, from_dict
from cl_ovq.config.check import check_values
from cl_ovq.config.files import (
    as_mapping,
    files_by_name,
    find_file,
    read_mapping,
    read_override,
    shipped_folders,
)
from cl_ovq.config.load import read_experiment
from cl_ovq.errors import UserError, nearest, unknown
from cl_ovq.learning import quantity_of
from cl_ovq.protocols import STREAM, check_protocol, check_stream, check_validation
from cl_ovq.quantities import METRICS, QUANTITIES, is_foreign
from cl_ovq.sweeps.schema import (
    MODES,
    SECTIONS,
    BudgetOptions,
    ClusterOptions,
    ResourceOptions,
    SchedulerOptions,
    SearchOptions,
    SelectionOptions,
)
from cl_ovq.sweeps.space import LISTS, Point, Space, read_space

FOLDER = "ray_configs"
BYTES = "memory_bytes"
OBJECTIVES = (*METRICS, BYTES)
TOP = ("title", "experiment", "set", "space", "objectives", "compare", "reuse", *SECTIONS)
# What belongs to the sweep, and so to none of its trials.
OWN = ("seed", "seeds", "output_dir", "evaluation.stream", "evaluation.stop_after", "checkpoint.enabled")
# What may change while weights, dictionaries and optimizer go on: population-based training searches among these only.
CHANGEABLE = (
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "strategy.strength",
    "strategy.alpha",
    "strategy.beta",
    "strategy.temperature",
    "model.dropout",
)
CHECKED_POINTS = 64


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

    def overrides(self, point: Point, seed: int, *, stream: str = STREAM) -> Point:
        """Return what a run's configuration has other than its experiment.

        Args:
            point: of the space.
            seed: of the run.
            stream: on which it is evaluated.
        """
        own: Point = {"seed": seed, "evaluation.stream": stream}
        if stream == STREAM and self.selection.experiences is not None:
            own["evaluation.stop_after"] = self.selection.experiences
        return self.settings | point | own

    def config(self, point: Point, seed: int, *, stream: str = STREAM, more: Point | None = None) -> ExperimentConfig:
        """Return the configuration of a run; `more` is laid over everything else.

        Raises:
            UserError: a key or value is wrong.
        """
        changes = {"threads": max(1, int(self.resources.cpus)), "tracking.log_model": False}
        changes |= self.overrides(point, seed, stream=stream) | (more or {})
        return from_dict(self.tree, to_overrides(changes))

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
        points = self.points()
        return len(points) if points is not None else int(self.search.trials or 0)

    @property
    def primary(self) -> str:
        """The objective that decides."""
        return next(iter(self.objectives))

    def definition(self) -> dict[str, Any]:
        """Return what decides the trials: a sweep can go on only where this is the same."""
        own = asdict(self)
        return json.loads(
            json.dumps({k: own[k] for k in own if k not in ("budget", "cluster", "compare", "reuse", "title")})
        )


def to_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return `key=value` overrides with YAML values."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def list_sweeps() -> dict[str, Path]:
    """Return the sweeps that can be named without a path, by name."""
    return files_by_name(shipped_folders(FOLDER))


def find_sweep(name: str) -> Path:
    """Return the file of a sweep, given as a path or by its name under `ray_configs/`.

    Raises:
        UserError: there is none.
    """
    return find_file("sweep", name, list_sweeps())


def load_sweep(name: str, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, and check it and the configurations that it leads to.

    Args:
        name: path of a YAML file, or the name of one under `ray_configs/`.
        overrides: `key=value`: of the sweep, as `search.trials=4` or `space.model.width={choice: [8, 16]}`, or of the
            experiment, for all trials.

    Raises:
        UserError: naming the key, and what would be right.
    """
    path = find_sweep(name)
    tree = read_mapping(path)
    for key in tree:
        if key not in TOP:
            raise unknown("key of a sweep", key, TOP)
    _override(tree, overrides)
    for key in ("experiment", "space"):
        if tree.get(key) is None:
            raise UserError(f"{path}: {key}: a sweep needs it")
    sections = {section: _section(section, cls, tree.get(section) or {}) for section, cls in SECTIONS.items()}
    reuse = tree.get("reuse")
    if reuse is not None and not isinstance(reuse, str):
        raise UserError(f"reuse: {reuse!r} is not the name of a folder, such as runs")
    space = read_space(as_mapping(tree["space"], "space"))
    sweep = Sweep(
        name=path.stem,
        title=str(tree.get("title", path.stem)),
        experiment=str(tree["experiment"]),
        tree=read_experiment(str(tree["experiment"])),
        settings=as_mapping(tree.get("set") or {}, "set"),
        space=space,
        compare=_compared(tree.get("compare") or [], space),
        objectives=_objectives(as_mapping(tree.get("objectives") or {}, "objectives")),
        reuse=reuse,
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
        key, value = read_override(override, "search.trials=4")
        section, dot, inner = key.partition(".")
        if key in TOP and key not in SECTIONS:
            tree[key] = value
        elif section in TOP and dot:
            as_mapping(tree.setdefault(section, {}) or {}, section)
            tree[section] = dict(tree[section] or {}) | {inner: value}
            if value is None and section == "space":
                del tree[section][inner]
        else:
            tree["set"] = as_mapping(tree.get("set") or {}, "set") | {key: value}


def _section(section: str, cls: Any, values: Any) -> Any:
    values = as_mapping(values, section)
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            raise UserError(
                f"unknown key '{section}.{key}'{nearest(key, known, prefix=f'{section}.') or ':'} known: "
                f"{', '.join(sorted(known))}"
            )
    check_values(section, cls, values)
    return cls(**values)


def _objectives(objectives: dict[str, Any]) -> dict[str, str]:
    for metric, mode in objectives.items():
        if metric not in OBJECTIVES:
            raise unknown("metric of objectives", metric, OBJECTIVES)
        if mode not in MODES:
            raise unknown(f"mode at objectives.{metric}", str(mode), MODES)
    return objectives


def _compared(keys: Any, space: Space) -> list[str]:
    if not isinstance(keys, list):
        raise UserError(f"compare: {keys!r} is not a list of keys")
    listed = [parameter.key for parameter in space.parameters if parameter.kind in LISTS]
    for key in keys:
        if key not in listed:
            raise unknown("key at compare, which must be one with a list of values in the space,", str(key), listed)
    return keys


def _check(sweep: Sweep) -> None:
    """Check what needs more than one section."""
    for key in OWN:
        for section, keys in (("set", sweep.settings), ("space", [p.key for p in sweep.space.parameters])):
            if key in keys and key == "evaluation.stream" and section == "set":
                check_stream(str(sweep.settings[key]))
            elif key in keys:
                raise UserError(
                    f"{section}.{key}: the sweep decides this itself: see its sections selection and search"
                )
    given = sweep.tree.get("evaluation") or {}
    if isinstance(given, Mapping) and "stream" in given:
        check_stream(str(given["stream"]), f"experiment {sweep.experiment}: evaluation.stream")
    selection = sweep.selection
    check_protocol(
        selection.protocol,
        experiences=selection.experiences,
        seeds=selection.seeds,
        reported=range(selection.test_seeds),
        section="selection",
    )
    if sweep.resources.gpus > 1 and sweep.resources.gpus % 1:
        raise UserError(f"resources.gpus: {sweep.resources.gpus} is neither a whole number nor a fraction of one")
    _check_search(sweep)
    _check_points(sweep)


def _check_search(sweep: Sweep) -> None:
    search, scheduler, parameters = sweep.search, sweep.scheduler, sweep.space.parameters
    if search.name != "grid" and search.trials is None:
        raise UserError(f"search.trials: the search '{search.name}' needs a number of trials")
    if search.name == "grid":
        for parameter in parameters:
            if parameter.kind not in ("grid", "choice"):
                raise UserError(f"space.{parameter.key}: a grid needs a list of values, not {parameter.kind}")
        if search.trials is not None:
            raise UserError("search.trials: a grid has as many trials as combinations: leave it out")
    elif search.name == "random":
        cells = len(sweep.space.combinations())
        if int(search.trials or 0) % cells:
            raise UserError(
                f"search.trials: {search.trials} trials cannot be shared alike among the {cells} combinations of "
                f"{', '.join(sweep.space.grids)}"
            )
    elif sweep.space.grids:
        raise UserError(f"space.{sweep.space.grids[0]}: Optuna draws: write choice, not grid")
    if search.name == "tpe" and len(sweep.objectives) > 1:
        raise UserError("search.name: tpe serves one objective: write search.name=pareto for several")
    if search.name == "pareto" and len(sweep.objectives) < 2:
        raise UserError("objectives: the search 'pareto' needs several: e.g. {accuracy: max, memory_bytes: min}")
    if scheduler.name != "none" and BYTES in sweep.objectives:
        raise UserError(f"scheduler.name: {scheduler.name} compares trials before their end, when {BYTES} is not known")
    if scheduler.name == "pbt":
        if search.name != "random":
            raise UserError(
                "search.name: population-based training starts from random points: write search.name=random"
            )
        for parameter in parameters:
            if len(sweep.selection.seeds) > 1:
                raise UserError(
                    "selection.seeds: population-based training takes one seed: it changes a run as it goes"
                )
            if parameter.key not in CHANGEABLE:
                raise unknown("key that a trial can change as it goes (scheduler pbt)", parameter.key, CHANGEABLE)


def _check_points(sweep: Sweep) -> None:
    """Check the configurations of trials: every value on its own, and the first trials whole."""
    from cl_ovq.checking import check_config

    points = [*sweep.space.samples(), *(sweep.points() or [])[:CHECKED_POINTS]]
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
            raise UserError(f"trial with {varied}: {error}") from error
        for metric in sweep.objectives:
            if is_foreign(metric, own := quantity_of(config.stream.name)):
                raise UserError(f"objectives.{metric}: '{config.stream.name}' has no {metric}: its own is {own}")
        check_validation(config.stream.options)
