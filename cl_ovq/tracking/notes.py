"""Descriptions of runs in Markdown, which MLflow shows above everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_ovq.quantities import BETTER, matrix_label, title

if TYPE_CHECKING:
    from cl_ovq.results import Result


def run_note(result: Result) -> str:
    """Return a run's metrics, its results matrix, and what its dictionary did."""
    columns = range(1, len(result.matrix))
    moments = ["before training", *(f"after {i}" for i in columns)]
    matrix = [[moment, *map(_number, row)] for moment, row in zip(moments, result.matrix, strict=True)]
    facts = result.provenance
    lines = [
        _table(["metric", "value"], [[title(name), _number(value)] for name, value in result.metrics.items()]),
        f"{matrix_label(result.quantity).capitalize()} on each test experience (columns), before training and after "
        "each experience:",
        _table(["", *map(str, columns)], matrix),
        _dictionary(result.dictionary),
        f"{facts['wall_seconds']:.1f} s, {facts['train_steps']} training steps, "
        f"peak memory {facts['peak_memory_bytes'] / 2**20:.0f} MiB, {facts['device']}. "
        f"Results on disk: `{result.output_dir}`.",
    ]
    return "\n\n".join(lines)


def seeds_note(metrics: Mapping[str, Any], runs: Sequence[Result]) -> str:
    """Return the aggregates over seeds, and each seed's own average and forgetting.

    Args:
        metrics: `cl_ovq.seeds.Aggregate` by the name of the metric.
        runs: of the seeds.
    """
    spreads = {name: (found.mean, found.standard_deviation, found.interval) for name, found in metrics.items()}
    rows = [[title(name) if name in BETTER else name, *map(_number, found)] for name, found in spreads.items()]
    shown = (runs[0].quantity, "forgetting")
    seeds = [[str(run.provenance["seed"]), *(_number(run.metrics[name]) for name in shown)] for run in runs]
    return "\n\n".join(
        [
            f"{len(runs)} seeds of one configuration; each is a child run.",
            _table(["metric", "mean", "standard deviation", "95 % interval, +-"], rows),
            _table(["seed", *map(title, shown)], seeds),
        ]
    )


def _dictionary(found: Mapping[str, Any]) -> str:
    if found["scope"] == "none":
        return "No dictionary."
    text = (
        f"Dictionary ({found['scope']}): {found['size']:.0f} slots per head in use, effective size "
        f"{found['effective_size']:.0f}, {found['bytes']} bytes."
    )
    if not found["history"]:
        return text
    if not found["plateaus"]:
        return f"{text} Its growth did not come to rest."
    rests = [
        f"from {plateau['start_tokens']:.0f} tokens (step {plateau['start_step']}) "
        + ("to the end" if plateau["end_tokens"] is None else f"to {plateau['end_tokens']:.0f}")
        for plateau in found["plateaus"]
    ]
    return f"{text} Growth at rest: {'; '.join(rests)}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *rows))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"
