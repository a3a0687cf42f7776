"""What a sweep found: as data, as tables, as figures, and as a note in Markdown."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cl_ovq.config import to_dict
from cl_ovq.quantities import QUANTITIES
from cl_ovq.results import write_atomically
from cl_ovq.seeds import Aggregate, aggregate
from cl_ovq.sweeps.files import Sweep, to_overrides
from cl_ovq.sweeps.records import DONE, Record, best, pareto_front
from cl_ovq.sweeps.space import LISTS, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_NAME = "sweep_results.json"


@dataclass
class Outcome:
    """A sweep that has ended.

    Attributes:
        sweep: what was run.
        directory: of the sweep.
        records: its trials.
        seconds: that this start took.
        run_id: MLflow's id of the sweep's run.
        interrupted: why it ended before its time; None if it did not.
        tests: runs of the best configuration on the test stream.
        importances: share of the variance by key.
    """

    sweep: Sweep
    directory: Path
    records: list[Record]
    seconds: float = 0.0
    run_id: str | None = None
    interrupted: str | None = None
    tests: list[dict[str, Any]] = field(default_factory=list)
    importances: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Record | None:
        """The chosen trial."""
        return best(self.records, self.sweep.objectives)

    @property
    def front(self) -> list[Record]:
        """The trials that no other beats in everything; of one objective that is the best."""
        return pareto_front(self.records, self.sweep.objectives)

    def test_metrics(self) -> dict[str, Aggregate]:
        """Return the metrics on the test stream over fresh seeds."""
        found: dict[str, list[float]] = {}
        for run in self.tests:
            for metric, value in run["metrics"].items():
                if value is not None:
                    found.setdefault(metric, []).append(value)
        return {metric: aggregate(values) for metric, values in found.items() if len(values) == len(self.tests)}

    def starts(self) -> list[float]:
        """Return the seconds from the end of a trial to the first training of the next one on the same worker."""
        found, last = [], dict[str, float]()
        for record in sorted((record for record in self.records if record.node), key=lambda record: record.entered):
            if record.node in last and record.runs and not record.deaths:
                found.append(record.entered - last[record.node] + record.runs[0]["setup_seconds"])
            last[record.node] = record.left
        return found

    def command(self, record: Record) -> str:
        """Return the command that runs a trial's first seed again."""
        seed = self.sweep.selection.seeds[0]
        threads = {"threads": max(1, int(self.sweep.resources.cpus))}
        overrides = to_overrides(threads | self.sweep.overrides(record.point, seed))
        return shlex.join(["cl-ovq", "run", self.sweep.experiment, *(text.replace('"', "") for text in overrides)])

    def to_json(self) -> str:
        """Return everything as JSON."""
        chosen = self.best
        counts: dict[str, int] = {}
        for record in self.records:
            counts[record.status] = counts.get(record.status, 0) + 1
        return json.dumps(
            {
                "sweep": self.sweep.name,
                "title": self.sweep.title,
                "run_id": self.run_id,
                "directory": str(self.directory),
                "definition": self.sweep.definition(),
                "seconds": self.seconds,
                "interrupted": self.interrupted,
                "counts": counts,
                "best": None if chosen is None else self._described(chosen),
                "test": {
                    "seeds": [run["seed"] for run in self.tests],
                    "metrics": {metric: asdict(found) for metric, found in self.test_metrics().items()},
                    "runs": self.tests,
                },
                "compared": [
                    {"point": point, "trials": count, "best": record and record.trial}
                    for point, count, record in self.compared()
                ]
                if self.sweep.compare
                else [],
                "pareto_front": [record.trial for record in self.front],
                "importances": self.importances,
                "trials": [_finite(asdict(record)) for record in self.records],
            },
            indent=2,
            allow_nan=False,
        )

    def _described(self, record: Record) -> dict[str, Any]:
        return {
            "trial": record.trial,
            "point": record.point,
            "validation": record.values,
            "config": to_dict(self.sweep.config(record.point, self.sweep.selection.seeds[0])),
            "command": self.command(record),
            "schedule": [*record.points, [record.experiences, record.point]] if record.points else None,
        }

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows of the table of trials, the best first."""
        keys = [parameter.key for parameter in self.sweep.space.parameters]
        head = ["trial", "status", *self.sweep.objectives, *keys, "experiences", "seconds"]
        sign = -1 if self.sweep.objectives[self.sweep.primary] == "max" else 1

        def order(record: Record) -> tuple[bool, float, int]:
            value = record.values.get(self.sweep.primary, math.nan)
            return record.status != DONE, sign * value if record.status == DONE else 0.0, record.trial

        body = [
            [
                str(record.trial),
                record.status,
                *(_number(record.values.get(metric)) for metric in self.sweep.objectives),
                *(_number(record.point.get(key)) for key in keys),
                str(record.experiences),
                _number(record.left - record.entered if record.node else None),
            ]
            for record in sorted(self.records, key=order)
        ]
        return head, body

    def compared(self) -> list[tuple[Point, int, Record | None]]:
        """Return each combination of the compared keys' values, how many trials it had, and its best one."""
        groups: dict[str, tuple[Point, list[Record]]] = {}
        for record in self.records:
            point = {key: record.point.get(key) for key in self.sweep.compare}
            groups.setdefault(json.dumps(point), (point, []))[1].append(record)
        return [(point, len(group), best(group, self.sweep.objectives)) for point, group in groups.values()]

    def _compared_rows(self) -> tuple[list[str], list[list[str]]]:
        head = [*self.sweep.compare, "trials", "best", *self.sweep.objectives]
        body = []
        for point, count, record in self.compared():
            values = {} if record is None else record.values
            numbers = [_number(values.get(metric)) for metric in self.sweep.objectives]
            body.append([*map(_number, point.values()), str(count), _number(record and record.trial), *numbers])
        return head, body

    def tables(self) -> list[Table]:
        """Return the tables for the terminal: trials, and the best one's scores."""
        head, body = self.rows()
        title = f"{self.sweep.title}: {len(body)} trials" + (f" ({self.interrupted})" if self.interrupted else "")
        trials = Table(title=title, title_justify="left")
        for name in head:
            trials.add_column(name.rpartition(".")[2] if name in head[2:] else name, justify="right")
        for cells in body[:20]:
            trials.add_row(*cells)
        if len(body) > 20:
            trials.caption = f"the best 20 of {len(body)}; all: {self.directory / FILE_NAME}"
        chosen, tables = self.best, [trials]
        if self.sweep.compare:
            head, body = self._compared_rows()
            tables.append(Table(*head, title="The best trial of each", title_justify="left"))
            for cells in body:
                tables[-1].add_row(*cells)
        if chosen is None:
            return tables
        scores = Table(title=f"Best: trial {chosen.trial}", title_justify="left")
        for name in ("", f"validation, seeds {', '.join(map(str, self.sweep.selection.seeds))}", "test, fresh seeds"):
            scores.add_column(name, justify="right" if name else "left")
        tested = self.test_metrics()
        measured = [quantity for quantity in QUANTITIES if quantity in chosen.runs[0]["metrics"]]
        for metric in dict.fromkeys((*self.sweep.objectives, *measured, "forgetting")):
            values = [run["metrics"].get(metric) for run in chosen.runs]
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if known and len(known) == len(values) else None
            scores.add_row(metric, _number(mean), _spread(tested.get(metric)))
        return [*tables, scores]

    def note(self) -> str:
        """Return what MLflow shows above the sweep's run."""
        chosen = self.best
        if chosen is None:
            return f"No trial ran to its end. {len(self.records)} were started."
        head, body = self.rows()
        tested = self.test_metrics().get(self.sweep.primary)
        lines = [
            f"Best: trial {chosen.trial}, {self.sweep.primary} "
            f"{_number(chosen.values[self.sweep.primary])} on validation data"
            + (f", {_spread(tested)} on the test stream over {len(self.tests)} fresh seeds." if tested else "."),
            f"```\n{self.command(chosen)}\n```",
        ]
        if chosen.points:
            lines.append("The best trial changed its hyper-parameters as it went; the command has the last ones.")
        if self.sweep.compare:
            lines.append(_markdown(*self._compared_rows()))
        lines += [_markdown(head, body[:50]), f"Everything: `{self.directory / FILE_NAME}`."]
        return "\n\n".join(lines)

    def figures(self) -> dict[str, Figure]:
        """Return the figures by file name: importance of each key, and the Pareto front of several objectives."""
        drawn = {"parameters.png": self._parameters_figure()}
        if self.importances:
            drawn["importance.png"] = self._importance_figure()
        if len(self.sweep.objectives) > 1:
            drawn["pareto.png"] = self._pareto_figure()
        return {name: figure for name, figure in drawn.items() if figure is not None}

    def write(self) -> list[Path]:
        """Write results, table and figures into the sweep's directory, and return their paths."""
        head, body = self.rows()
        paths = [self.directory / FILE_NAME, self.directory / "trials.md"]
        write_atomically(paths[0], self.to_json() + "\n")
        write_atomically(paths[1], _markdown(head, body))
        for name, figure in self.figures().items():
            figure.savefig(self.directory / name, dpi=110)
            paths.append(self.directory / name)
        return paths

    def _done(self) -> list[Record]:
        return [record for record in self.records if record.status == DONE]

    def _importance_figure(self) -> Figure:
        from matplotlib.figure import Figure

        names, shares = list(self.importances)[::-1], list(self.importances.values())[::-1]
        figure = Figure(figsize=(7, 1.2 + 0.35 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, shares)
        axes.set_xlabel(f"share of the variance of {self.sweep.primary} (functional analysis of variance)")
        axes.set_title(f"{self.sweep.title}: {len(self._done())} trials", fontsize="medium")
        return figure

    def _pareto_figure(self) -> Figure:
        from matplotlib.figure import Figure

        y, x = list(self.sweep.objectives)[:2]
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        done, front = self._done(), self.front
        axes.scatter([r.values[x] for r in done], [r.values[y] for r in done], color="tab:gray", label="trials")
        line = sorted((r.values[x], r.values[y]) for r in front)
        axes.plot(*zip(*line, strict=True), "o-", color="tab:blue", label="Pareto front") if line else None
        for record in front:
            axes.annotate(str(record.trial), (record.values[x], record.values[y]), fontsize="small")
        axes.set(xlabel=x, ylabel=y)
        if x.endswith("bytes") and line and line[0][0] > 0:
            axes.set_xscale("log")
        axes.legend()
        axes.set_title(self.sweep.title, fontsize="medium")
        return figure

    def _parameters_figure(self) -> Figure | None:
        """The first objective over every key."""
        from matplotlib.figure import Figure

        done, parameters = self._done(), self.sweep.space.parameters
        if not done:
            return None
        figure = Figure(figsize=(3.2 * len(parameters), 3.2), layout="constrained")
        row: Sequence[Axes] = figure.subplots(1, len(parameters), squeeze=False, sharey=True)[0]
        for axes, parameter in zip(row, parameters, strict=True):
            shown = [record for record in done if parameter.key in record.point]
            values = [record.point[parameter.key] for record in shown]
            listed = parameter.kind in LISTS
            places = [parameter.values.index(value) for value in values] if listed else values
            axes.scatter(places, [record.values[self.sweep.primary] for record in shown], s=16)
            if listed:
                axes.set_xticks(range(len(parameter.values)), [str(v) for v in parameter.values], fontsize="small")
            elif parameter.kind == "loguniform":
                axes.set_xscale("log")
            axes.set_xlabel(parameter.key, fontsize="small")
        row[0].set_ylabel(self.sweep.primary)
        return figure


def _markdown(head: list[str], body: list[list[str]]) -> str:
    rule = ["---"] * 2 + ["---:"] * (len(head) - 2)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body)) + "\n"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _spread(found: Aggregate | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.4g}" + ("" if found.interval is None else f" +- {found.interval:.2g}")


def _finite(tree: Any) -> Any:
    """Return plain data with None for what JSON cannot hold."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def point_tags(point: Point) -> dict[str, Any]:
    """Return a point as tags of an MLflow run."""
    return {f"best/{key}": value for key, value in point.items()}
