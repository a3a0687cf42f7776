"""What a study found: as data, as tables, and as a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_ovq.evaluation.aggregates import Aggregate, aggregate
from cl_ovq.evaluation.metrics import intransigence, to_matrix
from cl_ovq.metric_names import BETTER, FINAL, better, own_metrics, title
from cl_ovq.paths import write_atomically
from cl_ovq.report.runs import capacities_table
from cl_ovq.report.table import Column, Number, Table, mean_number
from cl_ovq.runs.result import Result, carried_bytes
from cl_ovq.strategies import sees_all
from cl_ovq.studies.along import along_figure, along_table, rows_along
from cl_ovq.studies.files import Study
from cl_ovq.studies.lengths import comparable_rows, comparable_tables, mean_lengths_figure
from cl_ovq.studies.sizes import BUDGET, sizes_figure
from cl_ovq.uris import redact_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cl_ovq.evaluation.records import LengthRecord

BOLD = "Bold: the best mean of the rows on one stream, those that see all data left aside; not tested."


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

    @property
    def sound(self) -> list[Result]:
        """The runs that did not diverge, of which metrics are."""
        return [run for run in self.runs if run.diverged is None]

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric of the results matrix by seed, where it is defined."""
        found = {run.config["seed"]: run.metrics.get(metric) for run in self.sound}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, of: Callable[[Result], float | None]) -> float | None:
        """Return the mean over runs; None where it is unknown of one."""
        values = [value for run in self.runs if (value := of(run)) is not None]
        return sum(values) / len(values) if len(values) == len(self.runs) else None


@dataclass(frozen=True)
class StudyResult:
    """The rows of a study.

    Attributes:
        study: what was run.
        rows: with at least one run.
        failed: error by run, or by the name of a row whose tuning chose nothing.
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
        best = {run.config["seed"]: to_matrix(run.matrix) for run in reference.sound}
        mine = {run.config["seed"]: to_matrix(run.matrix) for run in row.sound}
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
        final = [name for name in FINAL if name in BETTER]  # where runs have them
        own = own_metrics(run.metrics for row in self.rows for run in row.runs)
        return names | {name: title(name) for name in (*final, *own) if any(row.values(name) for row in self.rows)}

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
                            "diverged": run.diverged,
                            "lengths": [_without_distances(record) for record in run.lengths],
                            "capacities": [_without_distances(record) for record in run.capacities],
                            "dictionary_bytes": run.provenance["dictionary_bytes"],
                            "replay_bytes": run.provenance["replay_bytes"],
                            "slot_statistics": run.dictionary.get("slot_statistics", []),
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
                "tuning": redact_tree(asdict(self.study.tuning)),
                "code": first["code"],
                "device": first["device"],
                "packages": first["packages"],
                "rows": rows,
                "failed": self.failed,
            },
            indent=2,
            allow_nan=False,
        )

    def table(self) -> Table:
        """Return the rows with all axes."""
        lost = any(len(row.sound) < len(row.runs) for row in self.rows)
        table = Table(
            *(Column(axis, right=False, min_width=9) for axis in self.study.axes),
            *(Column(name, better=better(metric), min_width=5) for metric, name in self.metrics.items()),
            *(Column(name, min_width=5) for name in ("diverged", "memory", "seconds")[0 if lost else 1 :]),
            Column("chosen", right=False, min_width=5),
            title=f"{self.study.title} ({len(self.study.seeds)} seeds)",
        )
        for row in self.rows:
            table.add(
                *(row.labels.get(axis, "") for axis in self.study.axes),
                *(mean_number(self.metric(row, metric), metric) for metric in self.metrics),
                *([f"{len(row.runs) - len(row.sound)} of {len(row.runs)}"] if lost else []),
                Number(row.mean(carried_bytes) or None, "memory_bytes"),
                Number(row.mean(lambda run: float(run.provenance["wall_seconds"])), spec=".0f"),
                ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row.chosen.items()),
            )
        return table

    def to_table(self) -> Table:
        """Return the same without axes on which all rows are alike."""
        table, axes = self.table(), len(self.study.axes)
        apart = [i for i in range(axes) if len({row[i] for row in table.rows}) > 1]
        return table.keep([*apart, *range(axes, len(table.columns))])

    def _more_tables(self) -> list[Table]:
        """Those of rows evaluated at other lengths, with other capacities or after some experiences."""
        rows = [row for row in self.rows if row.sound and row.sound[0].capacities]
        capacities = [capacities_table([run.capacities for run in row.sound], row.name) for row in rows]
        along = [along_table(found)] if (found := rows_along(self.rows)) else []
        return [*comparable_tables(self.rows).values(), *capacities, *along]

    def to_markdown(self) -> str:
        """Return all tables in Markdown."""
        return "\n".join(table.to_markdown() for table in (self.table(), *self._more_tables()))

    def to_latex(self) -> str:
        """Return all tables in LaTeX; in the first one the best means are marked."""
        first = [row.runs[0].config for row in self.rows]
        streams = [None if sees_all(c) else json.dumps(c["stream"]) for c in first]
        tables = (self.to_table().mark_best(streams, BOLD), *self._more_tables())
        return "\n".join(table.to_latex() for table in tables)

    def to_figure(self) -> Figure:
        """Draw averages and forgetting of every row, with confidence intervals."""
        from cl_ovq.evaluation.drawing import mark_names, new_figure, plain
        from cl_ovq.evaluation.style import PALETTE

        rows = self.rows[::-1]
        names = (*self.quantities, "forgetting")
        figure = new_figure(3.2 + 3.2 * len(names), 1.2 + 0.26 * len(rows))
        for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
            found = {y: aggregate for y, row in enumerate(rows) if (aggregate := self.metric(row, name)) is not None}
            means, spreads = [one.mean for one in found.values()], [one.interval or 0.0 for one in found.values()]
            axes.errorbar(means, list(found), xerr=spreads, fmt="o", color=PALETTE[0], markersize=4)
            axes.set_xlabel(self.metrics[name])
            axes.grid(axis="x", linewidth=0.4)
            mark_names(axes.yaxis, [row.name for row in rows])
        figure.suptitle(plain(self.study.title), fontsize="medium")
        return figure

    def write(self, directory: Path, figure_format: str = "png") -> list[Path]:
        """Write `<study>.json`, `.md`, `.tex`, `.csv` and figures, some over length, bytes or experiences, too.

        Args:
            directory: is made.
            figure_format: one of `FIGURE_FORMATS`.

        Returns:
            The paths.
        """
        directory.mkdir(parents=True, exist_ok=True)
        name = self.study.name
        texts = {f"{name}.json": self.to_json() + "\n", f"{name}.md": self.to_markdown()}
        texts |= {f"{name}.tex": self.to_latex(), f"{name}.csv": self.table().to_csv()}
        texts |= {f"{name}_{group}.csv": table.to_csv() for group, table in comparable_tables(self.rows).items()}
        along = rows_along(self.rows)
        if along:
            texts[f"{name}_along.csv"] = along_table(along).to_csv()
        for file, text in texts.items():
            write_atomically(directory / file, text)
        figures = {f"{file}.{figure_format}": figure for file, figure in self._figures().items()}
        for file, figure in figures.items():
            figure.savefig(directory / file, dpi=110)
        return [directory / file for file in (*texts, *figures)]

    def _figures(self) -> dict[str, Figure]:
        """Return every figure by the name of its file without its ending."""
        name, figures = self.study.name, {self.study.name: self.to_figure()}
        figures |= {f"{name}_{group}": mean_lengths_figure(rows) for group, rows in comparable_rows(self.rows).items()}
        if along := rows_along(self.rows):
            figures[f"{name}_along"] = along_figure(along, self.study.title)
        if BUDGET in self.study.axes:
            figures[f"{name}_bytes"] = sizes_figure(self)
        return figures


def _without_distances(record: LengthRecord) -> dict[str, object]:
    return {name: value for name, value in record.items() if name != "distances"}
