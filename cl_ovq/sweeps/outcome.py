"""What a sweep found: as data, as tables, as figures, and as a note in Markdown."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_ovq.config import to_dict
from cl_ovq.evaluation.aggregates import Aggregate, aggregate
from cl_ovq.imports import as_options
from cl_ovq.metric_names import QUANTITIES, format_number
from cl_ovq.paths import write_atomically
from cl_ovq.report.markup import code, code_block
from cl_ovq.report.table import Column, Number, Table, Text, mean_number, metric_name
from cl_ovq.runs.result import finite
from cl_ovq.sweeps.files import Sweep, to_overrides
from cl_ovq.sweeps.records import DONE, Record, best, pareto_front
from cl_ovq.sweeps.space import LISTS, Point
from cl_ovq.uris import redact_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE_NAME = "sweep_results.json"
SHOWN = 20  # trials in the terminal and in LaTeX
PANELS = 12  # keys of a figure, an axis each
KEYS_DRAWN = 30  # bars of a figure


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
        doubts: what makes them doubtful, in a line each.
    """

    sweep: Sweep
    directory: Path
    records: list[Record]
    seconds: float = 0.0
    run_id: str | None = None
    interrupted: str | None = None
    tests: list[dict[str, Any]] = field(default_factory=list)
    importances: dict[str, float] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

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

    def diverged_tests(self) -> list[int]:
        """Return the seeds whose runs on the test stream diverged."""
        return [run["seed"] for run in self.tests if run.get("diverged")]

    def starts(self) -> list[float]:
        """Return the seconds from the end of a trial to the first training of the next one on the same worker."""
        found, last = [], dict[str, float]()
        for record in sorted((record for record in self.records if record.node), key=lambda record: record.entered):
            if record.node in last and record.runs and not record.deaths:
                found.append(record.entered - last[record.node] + record.runs[0]["setup_seconds"])
            last[record.node] = record.left
        return found

    def command(self, record: Record) -> str:
        """Return the command that runs a trial's first seed again, without the secrets of any address."""
        seed = self.sweep.selection.seeds[0]
        threads = {"threads": max(1, int(self.sweep.resources.cpus))}
        overrides = to_overrides(threads | self.sweep.overrides(record.point, seed))
        return shlex.join(redact_tree(["cl-ovq", "run", self.sweep.experiment, *overrides, *as_options()]))

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
                "doubts": self.doubts,
                "trials": [finite(asdict(record)) for record in self.records],
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

    def trials(self, most: int | None = None, *, short: bool = False) -> Table:
        """Return the table of trials, the best first.

        Args:
            most: of so many; of all if None.
            short: whether keys are without their section.
        """
        keys = [parameter.key for parameter in self.sweep.space.parameters]
        names = [key.rpartition(".")[2] if short else key for key in keys]
        heading = f"{self.sweep.title}: {len(self.records)} trials"
        more = most is not None and len(self.records) > most
        table = Table(
            *(Column(name, right=short) for name in ("trial", "status")),
            *(Column(metric, better=1 if mode == "max" else -1) for metric, mode in self.sweep.objectives.items()),
            *map(Column, (*names, "experiences", "seconds")),
            title=heading + (f" ({self.interrupted})" if self.interrupted else ""),
            caption=f"The best {most} of {len(self.records)}; all of them are in {FILE_NAME}." if more else "",
        )
        for record in sorted(self.records, key=self._order)[:most]:
            table.add(
                *(record.trial, record.status),
                *(Number(record.values.get(metric), metric) for metric in self.sweep.objectives),
                *(_value(record.point.get(key)) for key in keys),
                record.experiences,
                Number(record.left - record.entered if record.node else None, "seconds"),
            )
        return table

    def _order(self, record: Record) -> tuple[bool, float, int]:
        sign = -1 if self.sweep.objectives[self.sweep.primary] == "max" else 1
        value = sign * record.values[self.sweep.primary] if record.status == DONE else 0.0
        return record.status != DONE, value, record.trial

    def compared(self) -> list[tuple[Point, int, Record | None]]:
        """Return each combination of the compared keys' values, how many trials it had, and its best one."""
        groups: dict[str, tuple[Point, list[Record]]] = {}
        for record in self.records:
            point = {key: record.point.get(key) for key in self.sweep.compare}
            groups.setdefault(json.dumps(point), (point, []))[1].append(record)
        return [(point, len(group), best(group, self.sweep.objectives)) for point, group in groups.values()]

    def _compared_table(self) -> Table:
        columns = map(Column, (*self.sweep.compare, "trials", "best", *self.sweep.objectives))
        table = Table(*columns, title="The best trial of each")
        for point, count, record in self.compared():
            values = {} if record is None else record.values
            numbers = [Number(values.get(metric), metric) for metric in self.sweep.objectives]
            table.add(*map(_value, point.values()), count, record and record.trial, *numbers)
        return table

    def tables(self) -> list[Table]:
        """Return the tables for the terminal: trials, and the best one's scores."""
        tables, chosen = [self.trials(SHOWN, short=True)], self.best
        if self.sweep.compare:
            tables.append(self._compared_table())
        if chosen is None:
            return tables
        validation = f"validation, seeds {', '.join(map(str, self.sweep.selection.seeds))}"
        scores = Table("", validation, "test, fresh seeds", title=f"Best: trial {chosen.trial}")
        if lost := self.diverged_tests():
            scores.caption = f"on the test stream diverged: {', '.join(f'seed {seed}' for seed in lost)}"
        tested = self.test_metrics()
        measured = [quantity for quantity in QUANTITIES if quantity in chosen.runs[0]["metrics"]]
        for metric in dict.fromkeys((*self.sweep.objectives, *measured, "forgetting")):
            values = [run["metrics"].get(metric) for run in chosen.runs]
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if known and len(known) == len(values) else None
            scores.add(metric_name(metric), Number(mean, metric), mean_number(tested.get(metric), metric))
        return [*tables, scores]

    def note(self) -> str:
        """Return what MLflow shows above the sweep's run."""
        chosen = self.best
        if chosen is None:
            return f"No trial ran to its end. {len(self.records)} were started."
        primary = self.sweep.primary
        tested = mean_number(self.test_metrics().get(primary), primary)
        said = f", {tested.text} on the test stream over {len(self.tests)} fresh seeds" if tested.seeds else ""
        value = format_number(chosen.values[primary], primary)
        lines = [
            f"Best: trial {chosen.trial}, {primary} {value} on validation data{said}.",
            code_block(self.command(chosen)),
        ]
        if lost := self.diverged_tests():
            lines.append(f"**On the test stream diverged: {', '.join(f'seed {seed}' for seed in lost)}.**")
        if chosen.points:
            lines.append("The best trial changed its hyper-parameters as it went; the command has the last ones.")
        if self.sweep.compare:
            lines.append(self._compared_table().to_markdown())
        lines += self.doubts
        lines += [self.trials(50).to_markdown(), f"Everything: {code(str(self.directory / FILE_NAME))}."]
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
        """Write results, tables and figures into the sweep's directory, and return their paths."""
        trials, best = self.trials(), self.trials(SHOWN, short=True)
        done = [True if row[1] == (Text(DONE),) else None for row in best.rows]
        texts = {FILE_NAME: self.to_json() + "\n", "trials.md": trials.to_markdown(), "trials.csv": trials.to_csv()}
        texts["trials.tex"] = best.mark_best(done, "Bold: the best of each objective, on validation data.").to_latex()
        paths = [self.directory / name for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            write_atomically(path, text)
        for name, figure in self.figures().items():
            figure.savefig(self.directory / name, dpi=110)
            paths.append(self.directory / name)
        return paths

    def _done(self) -> list[Record]:
        return [record for record in self.records if record.status == DONE]

    def _importance_figure(self) -> Figure:
        from cl_ovq.evaluation.drawing import new_figure, plain, shortened

        most = list(self.importances.items())[:KEYS_DRAWN][::-1]
        names, shares = [shortened(name) for name, _ in most], [share for _, share in most]
        figure = new_figure(7, 1.2 + 0.35 * len(names))
        axes = figure.subplots()
        axes.barh(names, shares)
        axes.set_xlabel(f"fraction of the variance of {self.sweep.primary} (functional ANOVA)")
        axes.set_title(plain(f"{self.sweep.title}: {len(self._done())} trials"), fontsize="medium")
        return figure

    def _pareto_figure(self) -> Figure:
        from cl_ovq.evaluation.drawing import LISTED, legend, new_figure, plain
        from cl_ovq.evaluation.style import GREY, PALETTE

        y, x = list(self.sweep.objectives)[:2]
        figure = new_figure(6.4, 4.4)
        axes = figure.subplots()
        done, front = self._done(), self.front
        axes.scatter(
            [r.values[x] for r in done],
            [r.values[y] for r in done],
            color=GREY,
            s=min(36.0, 18000 / max(1, len(done))),
            label="trials",
        )
        line = sorted((r.values[x], r.values[y]) for r in front)
        axes.plot(*zip(*line, strict=True), "o-", color=PALETTE[0], label="Pareto front") if line else None
        for record in front[:: math.ceil(len(front) / LISTED) or 1]:
            axes.annotate(str(record.trial), (record.values[x], record.values[y]), fontsize="small")
        axes.set(xlabel=x, ylabel=y)
        if x.endswith("bytes") and line and line[0][0] > 0:
            axes.set_xscale("log")
        legend(figure, axes)
        axes.set_title(plain(self.sweep.title), fontsize="medium")
        return figure

    def _parameters_figure(self) -> Figure | None:
        """The first objective over every key; over the most important ones, where there are very many."""
        from cl_ovq.evaluation.drawing import mark_names, new_figure

        done, parameters = self._done(), list(self.sweep.space.parameters)
        if not done:
            return None
        order = list(self.importances)
        if len(parameters) > PANELS:
            parameters = sorted(parameters, key=lambda p: order.index(p.key) if p.key in order else len(order))[:PANELS]
        across = min(len(parameters), 4)
        down = math.ceil(len(parameters) / across)
        figure = new_figure(3.2 * across, 3.2 * down)
        panels = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes in panels.flat[len(parameters) :]:
            axes.set_axis_off()
        for axes, parameter in zip(panels.flat, parameters, strict=False):
            shown = [record for record in done if parameter.key in record.point]
            values = [record.point[parameter.key] for record in shown]
            listed = parameter.kind in LISTS
            places = [parameter.values.index(value) for value in values] if listed else values
            size = min(16.0, 8000 / len(done))  # an area: thousands are small
            axes.scatter(places, [record.values[self.sweep.primary] for record in shown], s=size)
            if listed:
                mark_names(axes.xaxis, [str(value) for value in parameter.values], most=8)
            elif parameter.kind == "loguniform":
                axes.set_xscale("log")
            axes.set_xlabel(parameter.key, fontsize="small")
        for axes in panels[:, 0]:
            axes.set_ylabel(self.sweep.primary)
        return figure


def _value(value: Any) -> Number | str | None:
    return Number(value, spec=".4g") if isinstance(value, float) else None if value is None else str(value)


def point_tags(point: Point) -> dict[str, Any]:
    """Return a point as tags of an MLflow run."""
    return {f"best/{key}": value for key, value in point.items()}
