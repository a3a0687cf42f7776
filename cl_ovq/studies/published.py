"""Published numbers, and whether this platform measures them: too good fails as well as too bad.

A file under `experiments/published/` is one row:

    title: Split-Fashion-MNIST, naive
    source: where the number is from
    links: {number: "https://...", settings: ["https://..."]}
    differs: what of the source's protocol the experiment does not have
    target: {accuracy: 0.1994, within: 0.005}
    experiment: split_fashion_mnist_mlp
    set: {strategy.name: naive}

Where the protocol differs a number cannot be reproduced, nor missed: it is `near` or `far`, and neither is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_ovq.config.files import as_mapping, files_by_name, find_file, read_mapping, shipped_folders
from cl_ovq.config.load import EXPERIMENTS, PUBLISHED, is_text_below
from cl_ovq.config.reading import Step
from cl_ovq.encoders import encoder_of
from cl_ovq.encoders.frozen import features_root, named_encoder
from cl_ovq.errors import UserError, unknown
from cl_ovq.evaluation.aggregates import Aggregate, aggregate
from cl_ovq.metric_names import known_metrics
from cl_ovq.report.table import Column, Number, Table, Text
from cl_ovq.strategies import STRATEGIES
from cl_ovq.studies.files import Row, Study, Tuning
from cl_ovq.studies.runs import run_study
from cl_ovq.studies.tables import RowResult
from streams import STREAMS, StreamDataError

QUIET = {"tracking.enabled": False, "checkpoint.enabled": False}
KEYS = ("title", "source", "links", "differs", "target", "experiment", "set")
LINKS = ("number", "settings")
FAILURES = ("too low", "too high", "diverged", "failed")  # verdicts
NO_SOURCE = "no source with a whole protocol found"


@dataclass(frozen=True)
class Target:
    """A published number.

    Attributes:
        name: of the file.
        title: what it is of.
        source: where it is from.
        number_at: address of the page where the number stands; None if it has none.
        settings_at: addresses of the files where hyper-parameters stand.
        differs: what of the source's protocol the row does not have; None if nothing that could matter.
        metric: its name.
        value: as published.
        within: the largest distance at which it counts as reproduced, on either side.
        row: the experiment that is to show it.
    """

    name: str
    title: str
    source: str
    number_at: str | None
    settings_at: tuple[str, ...]
    differs: str | None
    metric: str
    value: float
    within: float
    row: Row


@dataclass(frozen=True)
class Reproduction:
    """A target, and what was measured.

    Attributes:
        target: the published number.
        measured: ours; None where there is none.
        missing: why there is no data or encoder for it; None where there is.
        diverged: runs that diverged, which are not in `measured`.
    """

    target: Target
    measured: Aggregate | None
    missing: str | None = None
    diverged: int = 0

    @property
    def verdict(self) -> str:
        """`reproduced`, `too low`, `too high`, `diverged`, `failed` if no run ended, or `not run` if none could.

        Where the protocol differs it is `near` or `far` in place of the first three.
        """
        if self.diverged:
            return "diverged"
        if self.measured is None:
            return "failed" if self.missing is None else "not run"
        distance = self.measured.mean - self.target.value
        within = abs(distance) <= self.target.within
        if self.target.differs is not None:
            return "near" if within else "far"
        if within:
            return "reproduced"
        return "too high" if distance > 0 else "too low"


def list_published() -> dict[str, Path]:
    """Return the files under `experiments/published/`, by name."""
    return files_by_name(folder / PUBLISHED for folder in shipped_folders(EXPERIMENTS))


def load_published(names: Sequence[str | Path] = ()) -> list[Target]:
    """Read published numbers, and check every configuration that they lead to.

    Args:
        names: paths of YAML files, or names under `experiments/published/`; all of those if empty.

    Raises:
        UserError: naming the file, the key, and what would be right.
    """
    known = list_published()
    return [_target(find_file("published number", str(name), known)) for name in names or known]


def _is_text(path: Sequence[Step]) -> bool:
    match list(path):
        case ["title" | "source" | "differs" | "experiment"] | ["links", "number"] | ["links", "settings", _]:
            return True
        case ["set", *place]:
            return is_text_below(place)
    return False


def _target(path: Path) -> Target:
    tree = read_mapping(path, _is_text)
    for key in tree:
        if key not in KEYS:
            raise unknown("key of a published number", str(key), KEYS)
    for key in ("title", "source", "target", "experiment"):
        if key not in tree:
            raise UserError(f"{path}: {key} is missing")
    target = as_mapping(tree["target"], "target")
    metrics = [key for key in target if key != "within"]
    if len(metrics) != 1 or "within" not in target:
        raise UserError(f"{path}: target: give one metric, and within")
    if metrics[0] not in known_metrics():
        raise unknown("metric of a published number", metrics[0], known_metrics())
    for key, value in target.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: {key}: {value!r} is not a number")
    number_at, settings_at = _links(path, tree.get("links"))
    row = Row({"row": path.stem}, str(tree["experiment"]), QUIET | as_mapping(tree.get("set") or {}, "set"), {})
    row.check({})
    return Target(
        name=path.stem,
        title=str(tree["title"]),
        source=str(tree["source"]),
        number_at=number_at,
        settings_at=settings_at,
        differs=None if tree.get("differs") is None else str(tree["differs"]),
        metric=metrics[0],
        value=target[metrics[0]],
        within=target["within"],
        row=row,
    )


def _links(path: Path, value: Any) -> tuple[str | None, tuple[str, ...]]:
    """Return the addresses of the number and of the hyper-parameters.

    Raises:
        UserError: naming the file and what is no address.
    """
    if value is None:
        return None, ()
    links = as_mapping(value, "links")
    for key in links:
        if key not in LINKS:
            raise unknown("link of a published number", str(key), LINKS)
    settings = links.get("settings") or []
    if not isinstance(settings, list):
        raise UserError(f"{path}: links.settings: must be a list of addresses")
    number = links.get("number")
    for address in [*settings, *([] if number is None else [number])]:
        if not str(address).startswith("https://"):
            raise UserError(f"{path}: links: {address!r} is no address: write https://...")
    return (None if number is None else str(number)), tuple(map(str, settings))


def reproduce(
    targets: Sequence[Target], seeds: int, directory: Path, console: Console, *, jobs: int = 1
) -> list[Reproduction]:
    """Run what is not done yet, and return what was measured of each target.

    Args:
        targets: that are to be shown.
        seeds: runs of each.
        directory: holds the runs; those found there are not run again.
        console: where progress is drawn.
        jobs: runs at a time.

    Raises:
        UserError: no run succeeded.
    """
    missing = _missing(targets)
    rows = [target.row for target in targets if target.name not in missing]
    measured: dict[str, RowResult] = {}
    if rows:
        study = Study("published", "Published numbers", rows, list(range(seeds)), Tuning(), {}, {})
        result = run_study(study, directory, console, jobs=jobs)
        measured = {row.labels["row"]: row for row in result.rows}
    found = []
    for target in targets:
        row = measured.get(target.name)
        values = list(row.values(target.metric).values()) if row else []
        lost = len(row.runs) - len(row.sound) if row else 0
        found.append(Reproduction(target, aggregate(values) if values else None, missing.get(target.name), lost))
    return found


def _missing(targets: Sequence[Target]) -> dict[str, str]:
    """Return why there is no data or encoder for a target, by its name; each one is looked for once."""
    looked: dict[tuple[Any, ...], str | None] = {}
    missing: dict[str, str] = {}

    def reason(key: tuple[Any, ...], find: Callable[[], Any]) -> str | None:
        if key not in looked:
            try:
                find()
                looked[key] = None
            except (StreamDataError, UserError) as error:
                looked[key] = str(error)
        return looked[key]

    for target in targets:
        config = target.row.config({}, 0, "test")
        options, read, encoder = config.stream.options, STREAMS[config.stream.name].read, encoder_of(config.encoder)
        told = []
        if read is not None:  # it is not generated
            key = getattr(options, "data_dir", None), getattr(options, "data", None)
            told.append(reason((read, *key), partial(read, options)))
        if encoder is not None:
            name = config.encoder.name
            key = getattr(encoder, "model", None), getattr(encoder, "weights", None)
            download = not any(told)  # there is no use for weights without data
            find = partial(named_encoder, name, encoder, features_root(encoder), download=download)
            told.append(reason((name, *key, download), find))
        if found := [line for line in told if line is not None]:
            missing[target.name] = "; ".join(found)
    return missing


def to_table(found: Sequence[Reproduction], *, sources: bool = False) -> Table:
    """Return target, measurement and verdict, a row each; with sources, links and what differs, if asked for."""
    words = [Column(name, right=False) for name in ("verdict", "source", "differs", "links")]
    heads = ("", "published", "within", "measured", "seeds")
    table = Table(*heads, *words, title="Published numbers", spread="standard deviation")
    styles = dict.fromkeys(FAILURES, "red") | {"reproduced": "green", "not run": "dim"}
    for one in found:
        target, measured = one.target, Number(None)
        if (ours := one.measured) is not None:
            measured = Number(ours.mean, spec=".4f", spread=ours.standard_deviation)
        numbers = Number(target.value, spec=".4f"), Number(target.within, spec=".3f"), measured
        links = " ".join(filter(None, [target.number_at, *target.settings_at]))
        verdict = Text(one.verdict, styles.get(one.verdict, ""))
        table.add(target.name, *numbers, ours and ours.seeds, verdict, target.source, target.differs or "", links)
    return table if sources else table.keep(range(len(heads) + 1))


def summary(found: Sequence[Reproduction]) -> Table:
    """Return how many published numbers of a strategy are reproduced, missed, not run, or of a protocol that differs.

    Strategies of the user's own stand there if they have a row.
    """
    heads = ("strategy", "reproduced", "missed", "differs", "not run")
    table = Table(*heads, Column("", right=False), title="By strategy")
    verdicts: dict[str, list[str]] = {name: [] for name, strategy in STRATEGIES.items() if not strategy.foreign}
    for one in found:
        verdicts.setdefault(one.target.row.config({}, 0, "test").strategy.name, []).append(one.verdict)
    groups = ("reproduced",), FAILURES, ("near", "far"), ("not run",)
    for name, of_strategy in verdicts.items():
        counts = [sum(verdict in group for verdict in of_strategy) for group in groups]
        table.add(name, *counts, "" if of_strategy else NO_SOURCE)
    return table
