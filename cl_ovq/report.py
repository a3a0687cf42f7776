"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from cl_ovq.quantities import matrix_label, title, words
from cl_ovq.results import Result
from cl_ovq.seeds import SeedsResult, aggregate

CLASS_INCREMENTAL = "class_incremental"


def matrix_table(result: Result) -> Table:
    """Return the results matrix as a table: a row per moment of training, a column per test experience."""
    table = Table(title=f"{result.run_name}: {matrix_label(result.quantity)} on test experience", title_justify="left")
    table.add_column("")
    for j in range(len(result.matrix[0])):
        table.add_column(str(j + 1), justify="right")
    for i, row in enumerate(result.matrix):
        cells = [_number(value, style="bold" if j == i - 1 else "" if j < i else "dim") for j, value in enumerate(row)]
        table.add_row("before training" if i == 0 else f"after {i}", *cells)
    return table


def beside_tables(
    name: str, lengths: Sequence[Mapping[str, Any]], capacities: Sequence[Mapping[str, Any]]
) -> list[Table]:
    """Return the tables of what a run was evaluated on beside its stream; none where it was not."""
    return [
        *([lengths_table({name: [lengths]})] if lengths else []),
        *([capacities_table(capacities)] if capacities else []),
    ]


def lengths_table(groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Table:
    """Return a row per group of runs over seeds: what it reaches at each length, and a state's bytes at the greatest.

    Args:
        groups: records of `evaluate_lengths` as data of each run, by the name of the group.
    """
    lengths = sorted({record["tokens"] for runs in groups.values() for records in runs for record in records})
    quantity = words(next(iter(groups.values()))[0][0]["quantity"])
    table = Table("", title=f"{quantity} over tokens of a sequence", title_justify="left")
    for length in lengths:
        table.add_column(str(length), justify="right")
    table.add_column("state bytes", justify="right")
    for name, runs in groups.items():
        at = [[record["value"] for records in runs for record in records if record["tokens"] == n] for n in lengths]
        state = max(runs[0], key=lambda record: record["tokens"])["state_bytes"]
        table.add_row(name, *(aggregate(values).shown() if values else "-" for values in at), f"{state:,}")
    return table


def capacities_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row per capacity of the dictionaries: what the run reaches at each length, and the state's bytes.

    Args:
        records: of `evaluate_capacities`.
    """
    found = {(record["capacity"], record["tokens"]): record for record in records}
    lengths = sorted({tokens for _, tokens in found})
    quantity = words(records[0]["quantity"])
    table = Table("slots", title=f"{quantity} over slots and tokens of a sequence", title_justify="left")
    for heading in (*map(str, lengths), "state bytes"):
        table.add_column(heading, justify="right")
    for capacity in dict.fromkeys(capacity for capacity, _ in found):
        values = (_number(found[capacity, length]["value"]) for length in lengths)
        table.add_row(str(capacity), *values, f"{found[capacity, lengths[-1]]['state_bytes']:,}")
    return table


def summary_table(results: Sequence[Result]) -> Table:
    """Return one column per run: average, forgetting, transfer, dictionary size, time."""
    table = Table("", title="all runs" if len(results) > 1 else None, title_justify="left", caption_justify="left")
    for result in results:
        table.add_column(result.run_name, justify="right")
    class_incremental = any(result.config["stream"].get("scenario") == CLASS_INCREMENTAL for result in results)
    metrics = [*dict.fromkeys(result.quantity for result in results)]
    metrics += ["forgetting", "backward_transfer", "forward_transfer"]
    if class_incremental:
        metrics.append("forward_transfer_task_masked")
        table.caption = (
            "In a class-incremental stream forward transfer is minus the accuracy before\n"
            "training, for any model: classes not yet seen are never predicted.\n"
            "Task-masked, it says whether earlier experiences help later ones."
        )
    for metric in metrics:
        table.add_row(title(metric), *(_number(result.metrics.get(metric)) for result in results))
    for key, name in (("size", "dictionary slots"), ("effective_size", "effective slots")):
        table.add_row(name, *(_slots(result, key) for result in results))
    table.add_row("seconds", *(f"{result.provenance['wall_seconds']:.1f}" for result in results))
    return table


def seeds_table(result: SeedsResult) -> Table:
    """Return one row per metric: mean, standard deviation and 95 % confidence interval over seeds."""
    name = result.runs[0].run_name.rsplit(" seed ", 1)[0]
    table = Table(title=f"{name}, {len(result.runs)} seeds", title_justify="left")
    for column in ("", "mean", "standard deviation", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for metric, found in result.metrics.items():
        if found.standard_deviation is None or found.interval is None:
            table.add_row(metric, f"{found.mean:.4g}", "-", "-")
        else:
            table.add_row(metric, f"{found.mean:.4g}", f"{found.standard_deviation:.2g}", f"+- {found.interval:.2g}")
    return table


def _slots(result: Result, key: str) -> str:
    return "-" if result.dictionary["scope"] == "none" else f"{result.dictionary[key]:.0f}"


def _number(value: float | None, style: str = "") -> str:
    text = "-" if value is None else f"{value:.3f}"
    return f"[{style}]{text}[/]" if style else text
