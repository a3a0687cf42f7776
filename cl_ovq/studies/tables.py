"""What a study found: as data, as tables in Markdown and in the terminal, and as a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cl_ovq.evaluation.metrics import intransigence
from cl_ovq.quantities import title
from cl_ovq.results import Result, carried_bytes, to_matrix, write_atomically
from cl_ovq.seeds import Aggregate, aggregate
from cl_ovq.studies.files import Study
from cl_ovq.studies.lengths import capacities_table, comparable_rows, lengths_table, mean_lengths_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RowResult:
    """One row of the table.

    Attributes:
        labels: option by axis.
        chosen: hyper-parameters chosen on validation data.
        scores: validation metric of every point of the grid, by the point as JSON; empty where nothing was tuned.
        runs: of the reported seeds.
    """

    labels: dict[str, str]
    chosen: dict[str, Any]
    scores: dict[str, float | None]
    runs: list[Result]

    @property
    def name(self) -> str:
        """The labels in one line."""
        return ", ".join(self.labels.values())

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric of the results matrix by seed, where it is defined."""
        found = {run.config["seed"]: run.metrics.get(metric) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, of: Callable[[Result], float]) -> float:
        """Return the mean over runs."""
        return sum(map(of, self.runs)) / len(self.runs)


@dataclass(frozen=True)
class StudyResult:
    """The rows of a study.

    Attributes:
        study: what was run.
        rows: with at least one run.
        failed: error by run.
    """

    study: Study
    rows: list[RowResult]
    failed: dict[str, str]

    def metric(self, row: RowResult, name: str) -> Aggregate | None:
        """Return a metric over seeds; None where it is undefined.

        `forgetting_beyond_refit` is the forgetting less that of the row named by the study's `refit`, and
        `intransigence` is against the row named by its `reference`; both seed by seed.
        """
        if name == "forgetting_beyond_refit":
            values = self._beyond_refit(row)
        elif name == "intransigence":
            values = self._intransigence(row)
        else:
            values = row.values(name)
        return aggregate(list(values.values())) if values else None

    def _beyond_refit(self, row: RowResult) -> dict[int, float]:
        floor = self._peer(row, self.study.refit)
        if floor is None:
            return {}
        mine, least = row.values("forgetting"), floor.values("forgetting")
        return {seed: mine[seed] - least[seed] for seed in mine.keys() & least.keys()}

    def _intransigence(self, row: RowResult) -> dict[int, float]:
        reference = self._peer(row, self.study.reference)
        if reference is None:
            return {}
        best = {run.config["seed"]: to_matrix(run.matrix) for run in reference.runs}
        mine = {run.config["seed"]: to_matrix(run.matrix) for run in row.runs}
        found = {seed: intransigence(mine[seed], best[seed]) for seed in mine.keys() & best.keys()}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def _peer(self, row: RowResult, labels: dict[str, str]) -> RowResult | None:
        """The row whose labels are those of this one but for the given ones; None if there is none, or it is itself."""
        wanted = row.labels | labels
        found = next((other for other in self.rows if labels and other.labels == wanted), None)
        return None if found is row else found

    @property
    def quantities(self) -> list[str]:
        """What the rows' streams measure, each once."""
        return list(dict.fromkeys(run.quantity for row in self.rows for run in row.runs))

    @property
    def metrics(self) -> dict[str, str]:
        """The columns: heading by metric."""
        names = {name: title(name) for name in (*self.quantities, "forgetting")}
        if self.study.refit:
            names["forgetting_beyond_refit"] = "beyond refit"
        names |= {f"learning_{quantity}": title(f"learning_{quantity}") for quantity in self.quantities}
        if self.study.reference:
            names["intransigence"] = "intransigence"
        anytime = ("average_anytime_accuracy", "worst_case_accuracy")  # where runs evaluate inside experiences
        return names | {name: title(name) for name in anytime if any(row.values(name) for row in self.rows)}

    def to_json(self) -> str:
        """Return rows, aggregates, choices and matrices as JSON; the whole results are in the runs' directories."""
        rows = []
        for row in self.rows:
            aggregates = {name: self.metric(row, name) for name in self.metrics}
            rows.append(
                {
                    "labels": row.labels,
                    "chosen": row.chosen,
                    "validation": row.scores,
                    "metrics": {name: asdict(found) for name, found in aggregates.items() if found is not None},
                    "memory_bytes": row.mean(carried_bytes),
                    "wall_seconds": row.mean(lambda run: float(run.provenance["wall_seconds"])),
                    "runs": [
                        {
                            "seed": run.config["seed"],
                            "matrix": run.matrix,
                            "metrics": run.metrics,
                            "lengths": [_without_distances(record) for record in run.lengths],
                            "capacities": [_without_distances(record) for record in run.capacities],
                            "dictionary_bytes": run.provenance["dictionary_bytes"],
                            "replay_bytes": run.provenance["replay_bytes"],
                            "census": run.dictionary.get("census", []),
                        }
                        for run in row.runs
                    ],
                }
            )
        first = self.rows[0].runs[0].provenance
        return json.dumps(
            {
                "study": self.study.name,
                "title": self.study.title,
                "seeds": self.study.seeds,
                "tuning": asdict(self.study.tuning),
                "code": first["code"],
                "device": first["device"],
                "packages": first["packages"],
                "rows": rows,
                "failed": self.failed,
            },
            indent=2,
            allow_nan=False,
        )

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        head = [*self.study.axes, *self.metrics.values(), "memory", "seconds", "chosen"]
        body = []
        for row in self.rows:
            found = [self.metric(row, name) for name in self.metrics]
            numbers = ["-" if value is None else value.shown() for value in found]
            chosen = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row.chosen.items())
            seconds = row.mean(lambda run: float(run.provenance["wall_seconds"]))
            labels = [row.labels.get(axis, "") for axis in self.study.axes]
            body.append([*labels, *numbers, _bytes(row.mean(carried_bytes)), f"{seconds:.0f}", chosen])
        return head, body

    def to_markdown(self) -> str:
        """Return the table in Markdown, and more for rows evaluated at other lengths or with other capacities."""
        head, body = self._cells()
        axes = len(self.study.axes)
        rule = ["---"] * axes + ["---:"] * (len(head) - axes - 1) + ["---"]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body)) + "\n"
        more = [lengths_table(*found) for found in comparable_rows(self.rows).items()]
        more += [capacities_table(row) for row in self.rows if row.runs[0].capacities]
        return "\n".join([table, *more])

    def to_table(self) -> Table:
        """Return the table for the terminal."""
        head, body = self._cells()
        told = [i for i in range(len(head)) if i >= len(self.study.axes) or len({cells[i] for cells in body}) > 1]
        table = Table(title=f"{self.study.title} ({len(self.study.seeds)} seeds)", title_justify="left")
        for i in told:
            right = len(self.study.axes) <= i < len(head) - 1
            table.add_column(
                head[i], justify="right" if right else "left", min_width=9 if i < len(self.study.axes) else 5
            )
        for cells in body:
            table.add_row(*(cells[i] for i in told))
        return table

    def to_figure(self) -> Figure:
        """Draw averages and forgetting of every row, with confidence intervals."""
        from matplotlib.figure import Figure

        rows = self.rows[::-1]
        names = (*self.quantities, "forgetting")
        figure = Figure(figsize=(3.2 + 3.2 * len(names), 1.2 + 0.26 * len(rows)), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
            for y, row in enumerate(rows):
                found = self.metric(row, name)
                if found is not None:
                    axes.errorbar(found.mean, y, xerr=found.interval or 0.0, fmt="o", color="tab:blue", markersize=4)
            axes.set_xlabel(self.metrics[name])
            axes.grid(axis="x", linewidth=0.4)
            axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="small")
        figure.suptitle(self.study.title, fontsize="medium")
        return figure

    def write(self, directory: Path) -> list[Path]:
        """Write `<study>.json`, `.md` and `.png`, and `<study>_<name>.png` over length; return the paths."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"{self.study.name}.{kind}" for kind in ("json", "md", "png")]
        write_atomically(paths[0], self.to_json() + "\n")
        write_atomically(paths[1], self.to_markdown())
        self.to_figure().savefig(paths[2], dpi=110)
        for name, rows in comparable_rows(self.rows).items():
            paths.append(directory / f"{self.study.name}_{name}.png")
            mean_lengths_figure(rows).savefig(paths[-1], dpi=110)
        return paths


def _without_distances(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "distances"}


def _bytes(number: float) -> str:
    return "-" if number == 0 else f"{number / 1e6:.2f} MB"
