"""Descriptions of runs in Markdown, which MLflow shows above everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cl_ovq.metric_names import format_number, matrix_label, title
from cl_ovq.report.markup import code, markdown
from cl_ovq.report.runs import matrix_table, seeds_table
from cl_ovq.report.table import Number, Table, metric_name

if TYPE_CHECKING:
    from cl_ovq.evaluation.aggregates import Aggregate
    from cl_ovq.evaluation.records import Dictionaries
    from cl_ovq.runs.result import Result


def run_note(result: Result) -> str:
    """Return a run's metrics, its results matrix, and what its dictionary did."""
    facts = result.provenance
    metrics = Table("metric", "value")
    for name, value in result.metrics.items():
        metrics.add(metric_name(name), Number(value, name))
    lines = [] if result.verdict is None else [f"**This run {markdown(result.verdict)}.** What it found before:"]
    lines += [
        metrics.to_markdown(),
        f"{matrix_label(result.quantity).capitalize()} on each test experience (columns), before training and after "
        "each experience:",
        matrix_table(result).to_markdown(),
        _dictionary(result.dictionary),
        f"{facts['wall_seconds']:.1f} s, {facts['train_steps']} training steps, "
        f"peak memory {format_number(facts['peak_memory_bytes'], 'peak_memory_bytes')}, "
        f"{markdown(str(facts['device']))}. "
        f"Results on disk: {code(result.output_dir)}.",
    ]
    return "\n\n".join(lines)


def seeds_note(metrics: Mapping[str, Aggregate], runs: Sequence[Result]) -> str:
    """Return the aggregates over seeds, and each seed's own average and forgetting.

    Args:
        metrics: over seeds, by the name of the metric.
        runs: of the seeds.
    """
    lost = [f"Seed {run.provenance['seed']} {markdown(run.verdict)}; it is in no mean." for run in runs if run.verdict]
    told = (runs[0].quantity, "forgetting")
    seeds = Table("seed", *map(title, told))
    for run in runs:
        seeds.add(run.provenance["seed"], *(Number(run.metrics[name], name) for name in told))
    intro = f"{len(runs)} seeds of one configuration; each is a child run."
    return "\n\n".join([intro, *lost, seeds_table(metrics, runs).to_markdown(), seeds.to_markdown()])


def _dictionary(found: Dictionaries) -> str:
    if found["scope"] == "none":
        return "No dictionary."
    text = (
        f"Dictionary ({markdown(str(found['scope']))}): {found['size']:.0f} slots per head in use, effective size "
        f"{found['effective_size']:.0f}, {format_number(found['bytes'], 'bytes')}."
    )
    if not found.get("history"):
        return text
    if not found.get("plateaus"):
        return f"{text} Its growth did not come to rest."
    rests = [
        f"from {plateau['start_tokens']:.0f} tokens (step {plateau['start_step']}) "
        + ("to the end" if plateau["end_tokens"] is None else f"to {plateau['end_tokens']:.0f}")
        for plateau in found["plateaus"]
    ]
    return f"{text} Growth at rest: {'; '.join(rests)}."
