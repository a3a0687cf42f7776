"""Evaluates a model that was trained before, on its own stream or another, without training it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.table import Table

from cl_ovq.checking import check_beside, find_device
from cl_ovq.checkpoints import NAME, read_checkpoint
from cl_ovq.config import ExperimentConfig, from_dict
from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import all_metrics
from cl_ovq.experiment import build_strategy, load_stream, quiet
from cl_ovq.learning import OBJECTIVES, seed_everything
from cl_ovq.models import build_model
from cl_ovq.quantities import words
from cl_ovq.results import FILE_NAME, Result, to_matrix
from streams import Stream, TensorSamples
from streams.sequences import SequenceSamples

# What may be changed of a finished run: what it is judged on, and where that is computed.
CHANGEABLE = (
    "stream.",
    *(f"evaluation.{key}" for key in ("stream", "batch_size", "lengths", "length_tokens", "capacities", "sharpen")),
    "device",
    "threads",
)


@dataclass(frozen=True)
class Evaluation:
    """What a finished model does on a stream.

    Attributes:
        source: the checkpoint.
        learned: experiences of its own stream that it had learned.
        stream: name of the stream that it was judged on.
        own: whether that is the very stream that it learned from.
        quantity: what it is judged by.
        values: of each experience, by name: what the results matrix would hold (`accuracy`, `task_masked_accuracy`,
            `loss`, or the quantity of a stream of sequences), with the sign that it has; of images also `linear_probe`,
            the accuracy of a linear classifier learned anew on its features, see `linear_probes`, and
            `untrained_probe`, the same on the features of the model before it learned anything.
        metrics: mean of the quantity; of images the means of the probes and `forward_transfer_linear_probe` (trained
            less untrained); on the own stream of a finished run also forgetting and backward transfer, from the rows
            that the run measured.
        lengths: on sequences of each of `evaluation.lengths`, see `evaluation.lengths.LengthRecord`.
        capacities: the same with dictionaries of each of `evaluation.capacities`.
    """

    source: str
    learned: int
    stream: str
    own: bool
    quantity: str
    values: dict[str, list[float | None]]
    metrics: dict[str, float | None]
    lengths: list[dict[str, Any]]
    capacities: list[dict[str, Any]]

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    def to_table(self) -> Table:
        """Return a row per quantity and a column per experience."""
        title = f"{self.source} after {self.learned} experiences, on {self.stream}"
        table = Table("", title=title + (" (its own stream)" if self.own else ""), title_justify="left")
        for number in range(1, len(self.values[self.quantity]) + 1):
            table.add_column(str(number), justify="right")
        table.add_column("mean", justify="right")
        for name, values in self.values.items():
            cells = ["-" if value is None else f"{value:.3f}" for value in (*values, _mean(values))]
            table.add_row(words(name), *cells)
        told = ("forgetting", "backward_transfer", "forward_transfer_linear_probe")
        shown = [f"{words(name)} {self.metrics[name]:.3f}" for name in told if self.metrics.get(name) is not None]
        table.caption = ", ".join(shown)
        return table


def evaluate_finished(name: str, overrides: Sequence[str] = (), uri: str | None = None) -> Evaluation:
    """Evaluate the model of a checkpoint; its dictionaries are left as they are.

    Args:
        name: a checkpoint, the directory that holds it, or a run's id or name in MLflow whose directory is still there.
        overrides: `key=value` of the sections `stream` and `evaluation`; another stream must have images of the same
            shape and no more classes than the model, or sequences of the same kind and vocabulary.
        uri: MLflow's store; the default one if None.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or the stream does not fit the model.
    """
    path = find_checkpoint_file(name, uri)
    for override in overrides:
        if not override.startswith(CHANGEABLE):
            raise UserError(f"'{override}': a finished run cannot be changed: known: {', '.join(CHANGEABLE)}")
    run, config, device = _open(path, overrides)
    check_beside(config)
    own_config = from_dict(run["about"]["config"])
    own = load_stream(own_config)
    stream = load_stream(config)
    _check_fit(own, stream)

    from cl_ovq.evaluation.lengths import evaluate_beside
    from cl_ovq.evaluation.matrix import MatrixRecorder
    from cl_ovq.evaluation.probes import linear_probes

    def probes(network: torch.nn.Module) -> list[float | None]:
        return linear_probes(network, stream, config.evaluation.stream, device)

    images = stream.kind == "classes"
    seed_everything(own_config.seed, "model")
    model = build_model(own_config, own).to(device)
    untrained = probes(model) if images else []
    recorder = MatrixRecorder(stream.classes_per_experience, stream.kind)
    strategy = build_strategy(config, stream, model, device, metrics=(recorder,))
    strategy.model.load_state_dict(run["state"]["model"])
    recorder.row = experiences = len(stream.classes_per_experience)
    strategy.eval(stream.benchmark.streams[config.evaluation.stream])
    values = {key: matrix[experiences].tolist() for key, matrix in recorder.result().items()}
    objective = OBJECTIVES[stream.kind]
    metrics = {objective.quantity: _mean(values[objective.quantity])}
    if images:
        values |= {"linear_probe": probes(strategy.model), "untrained_probe": untrained}
        metrics |= {name: _mean(values[name]) for name in ("linear_probe", "untrained_probe")}
        pairs = zip(values["linear_probe"], untrained, strict=True)
        metrics["forward_transfer_linear_probe"] = _mean([a - b for a, b in pairs if a is not None and b is not None])

    same = _data(own) == _data(stream) and own_config.evaluation.stream == config.evaluation.stream
    results = path.parent / FILE_NAME
    if same and results.exists():
        matrix = to_matrix(Result.read(results).matrix)
        matrix[-1] = objective.sign * np.array(values[objective.quantity])
        found = all_metrics(matrix, objective.quantity)
        metrics |= {key: found[key] for key in ("forgetting", "backward_transfer")}
    beside = evaluate_beside(strategy.model.eval(), stream, config.evaluation, device)
    return Evaluation(str(path), run["done"], stream.name, same, objective.quantity, values, metrics, **beside)


def finished_lengths(name: str, lengths: Sequence[int], tokens: int, *, sharpen: bool = False) -> list[dict[str, Any]]:
    """Evaluate the model of a checkpoint on sequences of its own stream of other lengths.

    Args:
        name: see `evaluate_finished`.
        lengths: in tokens.
        tokens: of all sequences of one length together.
        sharpen: see `evaluation.lengths.evaluate_lengths`.

    Returns:
        Records as data, see `evaluation.lengths.LengthRecord`.

    Raises:
        UserError: there is no such checkpoint, or its stream has no sequences of such a length.
    """
    from cl_ovq.evaluation.lengths import evaluate_beside

    asked = {"lengths": [*lengths], "length_tokens": tokens, "capacities": [], "sharpen": str(sharpen).lower()}
    overrides = [f"evaluation.{key}={value}" for key, value in asked.items()]
    run, config, device = _open(find_checkpoint_file(name), overrides)
    stream = load_stream(config)
    model = build_model(config, stream).to(device)
    model.load_state_dict(run["state"]["model"])
    return evaluate_beside(model.eval(), stream, config.evaluation, device)["lengths"]


def _open(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], ExperimentConfig, torch.device]:
    """Return a checkpoint, its configuration with overrides, and the device that this asks for."""
    run = read_checkpoint(path)
    quiet()
    config = from_dict(run["about"]["config"], overrides)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return run, config, find_device(config.device)


def _data(stream: Stream) -> list[Any]:
    """What tells a stream's data from another's: sequences are generated, and their rows alone say little."""
    return [stream.provenance.get(name) for name in ("split_sha256", "sequences_sha256")]


def find_checkpoint_file(name: str, uri: str | None = None) -> Path:
    """Return the checkpoint that a name stands for, see `evaluate_finished`.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if not path.is_dir():
        path = _directory_of_run(name, uri)
    if not (path / NAME).is_file():
        raise UserError(f"{path} holds no checkpoint ({NAME}): it was run with checkpoint.enabled=false, or not at all")
    return path / NAME


def _directory_of_run(name: str, uri: str | None) -> Path:
    from cl_ovq.comparison import load_group

    group = load_group(name, uri)
    if len(group.runs) > 1:
        raise UserError(f"'{name}' are runs of {len(group.runs)} seeds: name one of them")
    directory = Path(next(iter(group.runs.values())).output_dir)
    if not directory.is_dir():
        raise UserError(f"the directory of run '{name}', {directory}, is not there: name its checkpoint")
    return directory


def _check_fit(own: Stream, other: Stream) -> None:
    if own.kind != other.kind:
        raise UserError(f"stream.name: '{other.name}' has {other.kind}, and the model was built for {own.kind}")
    if isinstance(own.samples, SequenceSamples):
        ours, theirs = _vocabulary(own), _vocabulary(other)
        if ours != theirs:
            raise UserError(f"stream.name: '{other.name}' has {theirs}, and the model was built for {ours}")
        return
    shape, wanted = (cast("TensorSamples", stream.samples).image_shape for stream in (other, own))
    if shape != wanted:
        raise UserError(
            f"stream.name: '{other.name}' has images of {list(shape)}, and the model was built for {list(wanted)}"
        )
    if other.n_classes > own.n_classes:
        raise UserError(f"stream.name: '{other.name}' has {other.n_classes} classes, and the model {own.n_classes}")
    if other.scenario == "task_incremental" != own.scenario:
        raise UserError("stream.scenario: the model was built without task labels")


def _vocabulary(stream: Stream) -> str:
    features = cast("SequenceSamples", stream.samples).features
    return f"{stream.n_classes} tokens" if features is None else f"vectors of {features}"


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
