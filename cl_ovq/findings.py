"""What a run has found: recorded while it trains, put into its result, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cl_ovq.evaluation.metrics import Matrix, all_metrics, average_anytime_accuracy, part, worst_case_accuracy
from cl_ovq.learning import OBJECTIVES, Objective
from cl_ovq.mixers import dictionaries
from cl_ovq.results import Result, to_lists, to_matrix

if TYPE_CHECKING:
    # These import Avalanche or matplotlib, which `cl-ovq show` does not need.
    from avalanche.training.templates import SupervisedTemplate
    from matplotlib.figure import Figure

    from cl_ovq.evaluation.census import CensusRecorder
    from cl_ovq.evaluation.dictionaries import DictionaryRecorder
    from cl_ovq.evaluation.matrix import MatrixRecorder
    from streams import Stream


class Recorders(NamedTuple):
    """What is recorded while a strategy trains."""

    matrix: MatrixRecorder
    growth: DictionaryRecorder
    census: CensusRecorder

    def so_far(self, learned: int | None) -> dict[str, Matrix]:
        """Return the results matrices of the first experiences, of all for None, by name."""
        matrices = self.matrix.result()
        return matrices if learned is None else {name: part(matrix, learned) for name, matrix in matrices.items()}


def describe_findings(
    stream: Stream, strategy: SupervisedTemplate, recorders: Recorders, stop_after: int | None, *, anytime: bool
) -> dict[str, Any]:
    """Return the fields of a result that say what was found.

    Args:
        stream: that was learned.
        strategy: that learned it.
        recorders: of the run.
        stop_after: experiences learned; None for all.
        anytime: whether there were evaluations inside experiences.
    """
    from cl_ovq.evaluation.anytime import as_array
    from cl_ovq.evaluation.dictionaries import summarize
    from cl_ovq.evaluation.plateaus import growth_plateaus, plateau_tokens

    matrices, objective = recorders.so_far(stop_after), OBJECTIVES[stream.kind]
    metrics = _metrics(matrices, objective)
    points = recorders.matrix.points if anytime else []
    if points and objective.sign > 0:
        values = as_array(points, matrices[objective.quantity].shape[1])
        metrics["average_anytime_accuracy"] = average_anytime_accuracy(values)
        metrics["worst_case_accuracy"] = worst_case_accuracy(values, [point.experience for point in points])
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
        "anytime": [asdict(point) for point in points],
        "dictionary": summary
        | {
            "plateau_tokens": summary["tokens"] if at_rest is None else at_rest,
            "plateaus": [asdict(plateau) for plateau in growth_plateaus(history)],
            "census": [asdict(census) for census in recorders.census.result()],
            "history": [asdict(record) for record in history],
        },
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


def draw_figures(result: Result, model: torch.nn.Module, recorders: Recorders) -> dict[str, Figure]:
    """Return the figures of a run by file name."""
    from cl_ovq.evaluation import figures
    from cl_ovq.evaluation.anytime import anytime_figure
    from cl_ovq.evaluation.lengths import lengths_figure

    name = result.run_name
    drawn = {"matrix.png": figures.matrix_figure(to_matrix(result.matrix), name, result.quantity)}
    if result.anytime:
        points = recorders.matrix.points
        drawn["anytime.png"] = anytime_figure(points, name, result.quantity)
    if result.lengths:
        drawn["lengths.png"] = lengths_figure({name: result.lengths}, result.config["stream"].get("length"))
    if recorders.growth.records:
        capacity = result.dictionary["capacity"]
        drawn["dictionary_growth.png"] = figures.growth_figure(recorders.growth.records, capacity, name)
    if shared := dictionaries(model):
        layer, dictionary = list(shared.items())[-1]
        drawn["dictionary_owners.png"] = figures.ownership_figure(recorders.census.records, name)
        drawn["dictionary_entries.png"] = figures.entries_figure(dictionary, f"{name}, {layer}")
    return drawn
