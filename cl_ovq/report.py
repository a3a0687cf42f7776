"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from cl_ovq.results import Result

CLASS_INCREMENTAL = "class_incremental"


def matrix_table(result: Result) -> Table:
    """Return the results matrix as a table: a row per moment of training, a column per test experience."""
    table = Table(title=f"{result.run_name}: accuracy on test experience", title_justify="left")
    table.add_column("")
    for j in range(len(result.matrix[0])):
        table.add_column(str(j + 1), justify="right")
    for i, row in enumerate(result.matrix):
        cells = [_number(value, style="bold" if j == i - 1 else "" if j < i else "dim") for j, value in enumerate(row)]
        table.add_row("before training" if i == 0 else f"after {i}", *cells)
    return table


def summary_table(results: Sequence[Result]) -> Table:
    """Return one row per run: accuracy, forgetting, transfer, dictionary size, time."""
    table = Table(title="all runs", title_justify="left")
    for name in ("run", "accuracy", "forgetting", "backward\ntransfer", "forward\ntransfer"):
        table.add_column(name, justify="left" if name == "run" else "right")
    masked = any(result.config["stream"].get("scenario") == CLASS_INCREMENTAL for result in results)
    if masked:
        table.add_column("forward transfer,\ntask-masked", justify="right")
    for name in ("dictionary\nslots", "effective\nslots", "seconds"):
        table.add_column(name, justify="right")
    for result in results:
        metrics, dictionary = result.metrics, result.dictionary
        cells = [result.run_name]
        cells += [
            _number(metrics[name]) for name in ("accuracy", "forgetting", "backward_transfer", "forward_transfer")
        ]
        if masked:
            cells.append(_number(metrics["forward_transfer_task_masked"]))
        slots = (dictionary["size"], dictionary["effective_size"])
        cells += ["-" if dictionary["scope"] == "none" else f"{value:.0f}" for value in slots]
        cells.append(f"{result.provenance['wall_seconds']:.1f}")
        table.add_row(*cells)
    if masked:
        table.caption = (
            "In a class-incremental stream forward transfer is minus the accuracy before training for any model,\n"
            "as classes not yet seen are never predicted. Task-masked, it says whether experiences help later ones."
        )
        table.caption_justify = "left"
    return table


def _number(value: float | None, style: str = "") -> str:
    text = "-" if value is None else f"{value:.3f}"
    return f"[{style}]{text}[/]" if style else text
