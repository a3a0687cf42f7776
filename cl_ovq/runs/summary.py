"""What a run has found: recorded while it trains, put into its result, drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape

from cl_ovq.evaluation.metrics import (
    Matrix,
    all_metrics,
    average_anytime_accuracy,
    part,
    to_lists,
    to_matrix,
    worst_case_accuracy,
)
from cl_ovq.mixers import dictionaries
from cl_ovq.runs.result import Result, finite
from cl_ovq.training import OBJECTIVES, Objective

if TYPE_CHECKING:
    # These import Avalanche or matplotlib, which `cl-ovq show` does not need.
    from avalanche.training.templates import SupervisedTemplate
    from matplotlib.figure import Figure

    from cl_ovq.evaluation.dictionaries import DictionaryRecorder
    from cl_ovq.evaluation.matrix import MatrixRecorder
    from cl_ovq.evaluation.slot_statistics import SlotStatisticsRecorder
    from cl_ovq.training.divergence import DivergedError
    from streams import Stream


class Recorders(NamedTuple):
    """What is recorded while a strategy trains."""

    matrix: MatrixRecorder
    growth: DictionaryRecorder
    slots: SlotStatisticsRecorder

    def so_far(self, learned: int | None) -> dict[str, Matrix]:
        """Return the results matrices of the first experiences, of all for None, by name."""
        matrices = self.matrix.result()
        return matrices if learned is None else {name: part(matrix, learned) for name, matrix in matrices.items()}


def describe_findings(
    stream: Stream,
    strategy: SupervisedTemplate,
    recorders: Recorders,
    stop_after: int | None,
    *,
    anytime: bool,
    diverged: DivergedError | None,
) -> dict[str, Any]:
    """Return the fields of a result that say what was found.

    Args:
        stream: that was learned.
        strategy: that learned it.
        recorders: of the run.
        stop_after: experiences learned; None for all.
        anytime: whether there were evaluations inside experiences.
        diverged: how training ended, if it did not come to its end.
    """
    from cl_ovq.evaluation.anytime import as_array
    from cl_ovq.evaluation.dictionaries import summarize
    from cl_ovq.evaluation.plateaus import growth_plateaus, plateau_tokens

    matrices, objective = recorders.so_far(stop_after), OBJECTIVES[stream.kind]
    metrics = _metrics(matrices, objective)
    points = recorders.matrix.points if anytime else []
    if points and objective.sign > 0:
        values, moments = (
            as_array(points, matrices[objective.quantity].shape[1]),
            [point.experience for point in points],
        )
        # Both are over the whole stream, and undefined for a part of it.
        metrics["average_anytime_accuracy"] = None if diverged else average_anytime_accuracy(values)
        metrics["worst_case_accuracy"] = None if diverged else worst_case_accuracy(values, moments)
    probe = stream.samples.gather(torch.arange(min(8, len(stream.samples)))).to(strategy.device)
    experiences = len(stream.classes_per_experience)
    history = recorders.growth.result()
    summary = summarize(strategy.model, probe, strategy.clock.train_iterations, experiences)
    at_rest = plateau_tokens(history)
    return {
        "quantity": objective.quantity,
        "matrix": to_lists(objective.sign * matrices[objective.quantity]),
        "matrices": {key: to_lists(value) for key, value in matrices.items() if key != objective.quantity},
        "metrics": metrics,
        "experiences": stream.experience_names()[:stop_after],
        "anytime": [asdict(point) for point in points],
        "dictionary": finite(
            summary
            | {
                "plateau_tokens": summary["tokens"] if at_rest is None else at_rest,
                "plateaus": [asdict(plateau) for plateau in growth_plateaus(history)],
                "slot_statistics": [asdict(record) for record in recorders.slots.result()],
                "history": [asdict(record) for record in history],
            }
        ),
        "diverged": None if diverged is None else diverged.to_dict(),
    }


def _metrics(matrices: Mapping[str, Matrix], objective: Objective) -> dict[str, float | None]:
    """Return the metrics of a stream; None where one is undefined."""
    metrics = all_metrics(objective.sign * matrices[objective.quantity], objective.quantity)
    if "task_masked_accuracy" in matrices:
        masked = all_metrics(matrices["task_masked_accuracy"])
        metrics["forward_transfer_task_masked"] = masked["forward_transfer"]
        metrics["task_masked_accuracy"] = masked["accuracy"]
    return metrics


def stream_metrics(matrices: Mapping[str, Matrix], objective: Objective) -> dict[str, float]:
    """Return the metrics of a stream as far as they are defined."""
    return {name: value for name, value in _metrics(matrices, objective).items() if value is not None}


def figures_of(result: Result, model: torch.nn.Module, recorders: Recorders) -> dict[str, Callable[[], Figure]]:
    """Return what draws the figures of a run, by file name without its ending."""
    from cl_ovq.evaluation import figures
    from cl_ovq.evaluation.anytime import anytime_figure
    from cl_ovq.evaluation.length_generalization import lengths_figure

    name, records = result.run_name, recorders.growth.records
    draw: dict[str, Callable[[], Figure]] = {
        "matrix": partial(figures.matrix_figure, to_matrix(result.matrix), name, result.quantity, labels=result.labels)
    }
    if sum(value is not None for value in result.seen_average) > 1:
        draw["over_experiences"] = partial(figures.seen_figure, result.seen_average, name, result.quantity)
    if sum(value is not None for value in result.by_age) > 1:
        draw["by_age"] = partial(figures.age_figure, result.by_age, name, result.quantity)
    if result.anytime:
        draw["anytime"] = partial(anytime_figure, recorders.matrix.points, name, result.quantity)
    if result.lengths:
        length = result.config["stream"].get("length")
        draw["lengths"] = partial(lengths_figure, {name: result.lengths}, length)
    if records and (capacity := result.dictionary.get("capacity")) is not None:
        draw["dictionary_growth"] = partial(figures.growth_figure, records, capacity, name)
    shared = dictionaries(model)
    if shared and recorders.slots.records:
        draw["dictionary_owners"] = partial(figures.ownership_figure, recorders.slots.records, name)
    if shared and records and records[-1].size:
        layer, dictionary = list(shared.items())[-1]
        draw["dictionary_entries"] = partial(figures.entries_figure, dictionary, f"{name}, {layer}")
    return draw


def warn(console: Console, topic: str, text: str) -> None:
    """Say in one line what went wrong without ending the run."""
    line = escape(" ".join(text.split()))
    console.print(f"[yellow]{topic}:[/] {line}", highlight=False, soft_wrap=True)


def draw_figures(result: Result, figures: Mapping[str, Callable[[], Figure]], console: Console) -> None:
    """Draw figures into a run's directory and enter them in its artifacts; one that fails is a warning in one line.

    Args:
        result: of the run, written already: no picture may lose it.
        figures: what draws each, by file name without its ending; the run's configuration has that.
        console: where a warning goes.
    """
    directory = Path(result.output_dir)
    for name, draw in figures.items():
        file = f"{name}.{result.config['figure_format']}"
        if save_figure(draw, directory / file, console):
            result.artifacts[name] = file


def save_figure(draw: Callable[[], Figure], path: Path, console: Console) -> bool:
    """Draw a figure into a file, and return whether it could be done; a warning in one line says why not."""
    try:
        draw().savefig(path, dpi=120)
    except Exception as error:  # of whatever kind
        with contextlib.suppress(OSError):
            path.unlink()  # half a picture
        warn(console, "figure", f"{path.name} was not drawn: {str(error) or type(error).__name__}")
        return False
    return True
