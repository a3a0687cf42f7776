"""Runs as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from cl_ovq.evaluation.aggregates import aggregate
from cl_ovq.metric_names import COLUMNS, evenly, matrix_label, own_metrics, part_note, title, words
from cl_ovq.report.table import Column, Number, Table, Text, mean_number, metric_name

if TYPE_CHECKING:
    from cl_ovq.evaluation.aggregates import Aggregate
    from cl_ovq.runs.result import Result

CLASS_INCREMENTAL = "class_incremental"
Records = Sequence[Mapping[str, Any]]


def matrix_table(result: Result) -> Table:
    """Return the results matrix: a row per moment of training, a column per test experience.

    Of a long stream it shows the same few experiences in rows and columns, from the first to the last, and where only
    some rows were asked for (`evaluation.rows`) some of these.
    """
    count = len(result.matrix[0])
    told = evenly(count, COLUMNS)
    moments = [0, *told]
    if result.config.get("evaluation", {}).get("rows"):
        measured = [i for i, row in enumerate(result.matrix) if any(value is not None for value in row)]
        moments = [measured[place - 1] for place in evenly(len(measured), COLUMNS)]
    heading = f"{result.run_name}: {matrix_label(result.quantity)} on test experience"
    caption = part_note(count, COLUMNS) or experiences_note(result.labels)
    table = Table("", *map(str, told), title=heading, caption=caption)
    for i in moments:
        values = [(result.matrix[i][j - 1], "bold" if j == i else "" if j < i else "dim") for j in told]
        cells = [Number(value, result.quantity, style=style) for value, style in values]
        table.add("before training" if i == 0 else f"after {i}", *cells)
    return table


def experiences_note(labels: Sequence[str]) -> str:
    """Return a sentence that says what each experience holds; nothing where one does not say, or is too long."""
    said = "; ".join(f"{number}: {label}" for number, label in enumerate(labels, start=1))
    return f"Experiences: {said}." if labels and all(labels) else ""


def generalization_tables(name: str, lengths: Records, capacities: Records) -> list[Table]:
    """Return the tables of what a run was evaluated on beside its stream; none where it was not."""
    tables = [lengths_table({name: [lengths]})] if lengths else []
    return [*tables, capacities_table([capacities])] if capacities else tables


def lengths_table(groups: Mapping[str, Sequence[Records]], name: str = "", caption: str = "") -> Table:
    """Return a row per group of runs over seeds: what it reaches at each length, and the bytes of its state.

    Args:
        groups: records of `evaluate_lengths` as data of each run, by the name of the group.
        name: of what all of them have in common.
        caption: below the table.
    """
    every = [record for runs in groups.values() for records in runs for record in records]
    lengths, quantity = sorted({record["tokens"] for record in every}), every[0]["quantity"]
    corner = f"{name}: {words(quantity)} over tokens".removeprefix(": ")
    table = Table(corner, *map(str, lengths), "state bytes at the first", "at the last", caption=caption)
    for group, runs in groups.items():
        at = [[record["value"] for records in runs for record in records if record["tokens"] == n] for n in lengths]
        means = [mean_number(aggregate(values) if values else None, quantity) for values in at]
        state = sorted((record["tokens"], record["state_bytes"]) for record in runs[0])
        table.add(group, *means, *(Number(state[place][1], spec=",") for place in (0, -1)))
    return table


def capacities_table(runs: Sequence[Records], name: str = "") -> Table:
    """Return a row per capacity of the dictionaries: what runs over seeds reach at each length, and a state's bytes.

    Args:
        runs: records of `evaluate_capacities` as data, of each run.
        name: of the runs.
    """
    values: dict[tuple[int, int], list[float]] = {}
    for record in (record for records in runs for record in records):
        values.setdefault((record["capacity"], record["tokens"]), []).append(record["value"])
    state = {(record["capacity"], record["tokens"]): record["state_bytes"] for record in runs[0]}
    lengths, quantity = sorted({tokens for _, tokens in values}), runs[0][0]["quantity"]
    columns = [f"{words(quantity)} at {length} tokens" for length in lengths]
    table = Table(Column(f"{name}: slots".removeprefix(": ")), *columns, "state bytes")
    for capacity in dict.fromkeys(capacity for capacity, _ in values):
        means = [mean_number(aggregate(values[capacity, length]), quantity) for length in lengths]
        table.add(Number(capacity, spec="d"), *means, Number(state[capacity, lengths[-1]], spec=","))
    return table


def summary_table(results: Sequence[Result]) -> Table:
    """Return one column per run: average, forgetting, transfer, dictionary size, time."""
    names = [result.run_name for result in results]
    table = Table("", *names, title="all runs" if len(results) > 1 else "")
    if any(result.diverged for result in results):
        table.add("diverged", *(Text(f"in step {r.diverged['step']}", "red") if r.diverged else "" for r in results))
    metrics = [*dict.fromkeys(result.quantity for result in results)]
    metrics += ["forgetting", "backward_transfer", "forward_transfer"]
    if any(result.config["stream"].get("scenario") == CLASS_INCREMENTAL for result in results):
        metrics.append("forward_transfer_task_masked")
        table.caption = (
            "In a class-incremental stream forward transfer is minus the accuracy before training, for any model: "
            "classes not yet seen are never predicted. Task-masked, it says whether earlier experiences help later "
            "ones."
        )
    if any("gain" in result.metrics for result in results):
        metrics.append("gain")
    for metric in (*metrics, *own_metrics(result.metrics for result in results)):
        table.add(metric_name(metric), *(Number(result.metrics.get(metric), metric) for result in results))
    for key in ("size", "effective_size"):
        found = [None if r.dictionary["scope"] == "none" else r.dictionary[key] for r in results]
        table.add(title(f"dictionary/{key}"), *(Number(value, f"dictionary/{key}") for value in found))
    table.add(title("wall_seconds"), *(Number(r.provenance["wall_seconds"], "wall_seconds") for r in results))
    return table


def seeds_table(metrics: Mapping[str, Aggregate], runs: Sequence[Result]) -> Table:
    """Return one row per metric: mean, standard deviation and 95 % confidence interval over seeds.

    Args:
        metrics: over seeds, by the name of the metric.
        runs: of the seeds.
    """
    name, lost = runs[0].run_name.rsplit(" seed ", 1)[0], sum(run.diverged is not None for run in runs)
    heading = f"{name}, {len(runs)} seeds" + (f", of which {lost} diverged and are in no mean" if lost else "")
    table = Table("", "mean", "standard deviation", "95 % interval, +-", title=heading)
    for metric, found in metrics.items():
        values = (found.mean, found.standard_deviation, found.interval)
        table.add(metric_name(metric), *(Number(value, metric) for value in values))
    return table


def leave_if_diverged(results: Iterable[Result]) -> None:
    """Say which runs diverged, and leave the command line with exit code 3 if one did: nobody must overlook it."""
    lost = [result for result in results if result.verdict is not None]
    for result in lost:
        text = escape(f"{result.run_name} {result.verdict}")
        Console(stderr=True, highlight=False).print(f"[bold red]{text}[/]", soft_wrap=True)
    if lost:
        raise typer.Exit(3)
