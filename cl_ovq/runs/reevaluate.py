"""Evaluates a model that was trained before, on its own stream or another, without training it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from cl_ovq.config import ExperimentConfig, from_stored
from cl_ovq.config.custom import CUSTOM, LENT
from cl_ovq.config.identity import EVALUATION
from cl_ovq.encoders import EncodedModel
from cl_ovq.encoders.stream import EncodedStream
from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import all_metrics, to_matrix
from cl_ovq.evaluation.records import CapacityRecord, LengthRecord
from cl_ovq.metric_names import COLUMNS, evenly, format_number, words
from cl_ovq.models import build_model
from cl_ovq.paths import RESULTS, is_file, is_folder
from cl_ovq.report.table import Number, Table
from cl_ovq.runs.checking import check_generalization, find_device
from cl_ovq.runs.checkpoints import NAME
from cl_ovq.runs.checkpoints.schema import read_run
from cl_ovq.runs.provenance import warn_of_changed_imports
from cl_ovq.runs.result import Result
from cl_ovq.runs.setup import build_strategy, load_stream, quiet, take_threads
from cl_ovq.seeding import unchanged_randomness
from cl_ovq.training import OBJECTIVES, seed_everything
from streams import Stream, TensorSamples
from streams.sequences import SequenceSamples

# What may be changed of a finished run: what it is judged on, and where that is computed.
CHANGEABLE = (
    *("stream.", "evaluation.split", "evaluation.batch_size"),
    *EVALUATION,
    *("device", "threads"),
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
            `untrained_probe`, the same on the features of the model before it learned anything. A model that was given
            from Python has the former if it has a method `features` that gives vectors, and not the latter.
        metrics: mean of the quantity; of images the means of the probes and `forward_transfer_linear_probe` (trained
            less untrained); on the own stream of a finished run also forgetting and backward transfer, from the rows
            that the run measured.
        lengths: on sequences of each of `evaluation.lengths`, see `evaluation.records.LengthRecord`.
        capacities: the same with dictionaries of each of `evaluation.capacities`.
    """

    source: str
    learned: int
    stream: str
    own: bool
    quantity: str
    values: dict[str, list[float | None]]
    metrics: dict[str, float | None]
    lengths: list[LengthRecord]
    capacities: list[CapacityRecord]

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    def to_table(self) -> Table:
        """Return a row per quantity and a column per experience."""
        count = len(self.values[self.quantity])
        told = evenly(count, COLUMNS)
        means = ("forgetting", "backward_transfer", "forward_transfer_linear_probe")
        found = {words(name): value for name in means if (value := self.metrics.get(name)) is not None}
        more = [f"{name} {format_number(value)}" for name, value in found.items()]
        part = f"{COLUMNS} of {count} experiences; all: --json" if count > COLUMNS else ""
        own = " (its own stream)" if self.own else ""
        heading = f"{self.source} after {self.learned} experiences, on {self.stream}{own}"
        caption = "\n".join(filter(None, [", ".join(more), part]))
        table = Table("", *map(str, told), "mean", title=heading, caption=caption)
        for name, values in self.values.items():
            table.add(words(name), *(Number(value, name) for value in (*(values[j - 1] for j in told), _mean(values))))
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
    check_generalization(config)
    own_config = _configuration(run)
    given = own_config.model.name == CUSTOM
    _check_used(own_config, "model")
    own = load_stream(own_config)
    stream = load_stream(config, learned=False)
    _check_fit(own, stream)

    from cl_ovq.evaluation.length_generalization import length_generalization
    from cl_ovq.evaluation.logger import evaluator
    from cl_ovq.evaluation.matrix import MatrixRecorder
    from cl_ovq.evaluation.probes import can_probe, linear_probes

    same = _data(own) == _data(stream) and own.classes_per_experience == stream.classes_per_experience
    same = same and own_config.evaluation.split == config.evaluation.split
    # What a run that ended early is of; another stream is looked at whole.
    part = slice(config.evaluation.stop_after if same else None)

    def probes(network: torch.nn.Module) -> list[float | None]:
        return linear_probes(network, stream, config.evaluation.split, device)[part]

    seed_everything(own_config.seed, "model")
    model = build_model(own_config, own).to(device)
    probed = can_probe(model, stream, device)
    untrained = probes(model) if probed and not given else []  # one that was given may have learned already
    recorder = MatrixRecorder(stream.classes_per_experience, stream.kind)
    strategy = build_strategy(config, stream, model, device, evaluator=evaluator(recorder))
    _load(strategy.model, run, path)
    recorder.row = experiences = len(stream.classes_per_experience)
    strategy.eval(stream.benchmark.streams[config.evaluation.split][part])
    values = {key: matrix[experiences][part].tolist() for key, matrix in recorder.result().items()}
    objective = OBJECTIVES[stream.kind]
    metrics = {objective.quantity: _mean(values[objective.quantity])}
    if probed:
        values["linear_probe"] = probes(strategy.model)
        metrics["linear_probe"] = _mean(values["linear_probe"])
    if untrained:
        values["untrained_probe"] = untrained
        metrics["untrained_probe"] = _mean(untrained)
        pairs = zip(values["linear_probe"], untrained, strict=True)
        metrics["forward_transfer_linear_probe"] = _mean([a - b for a, b in pairs if a is not None and b is not None])

    results = path.parent / RESULTS
    if same and results.exists():
        matrix, count = to_matrix(Result.read(results).matrix), len(values[objective.quantity])
        if matrix.shape[1] != count:
            raise UserError(f"{results} is for a stream of {matrix.shape[1]} experiences, but {path} for {count}")
        matrix[-1] = objective.sign * np.array(values[objective.quantity])
        found = all_metrics(matrix, objective.quantity)
        metrics |= {key: found[key] for key in ("forgetting", "backward_transfer")}
    generalization = length_generalization(strategy.model.eval(), stream, config.evaluation)
    return Evaluation(str(path), run["done"], stream.name, same, objective.quantity, values, metrics, **generalization)


def finished_lengths(
    name: str, lengths: Sequence[int], tokens: int, *, log_length_scaling: bool = False
) -> list[LengthRecord]:
    """Evaluate the model of a checkpoint on sequences of its own stream of other lengths.

    Args:
        name: see `evaluate_finished`.
        lengths: in tokens.
        tokens: of all sequences of one length together.
        log_length_scaling: see `evaluation.length_generalization.evaluate_lengths`.

    Raises:
        UserError: there is no such checkpoint, or its stream has no sequences of such a length.
    """
    from cl_ovq.evaluation.length_generalization import length_generalization

    asked = {
        "lengths": [*lengths],
        "length_tokens": tokens,
        "capacities": [],
        "log_length_scaling": str(log_length_scaling).lower(),
    }
    overrides = [f"evaluation.{key}={value}" for key, value in asked.items()]
    path = find_checkpoint_file(name)
    run, config, device = _open(path, overrides)
    stream = load_stream(config)
    model = build_model(config, stream).to(device)
    _load(model, run, path)
    return length_generalization(model.eval(), stream, config.evaluation)["lengths"]


def trained_model(name: str) -> torch.nn.Module:
    """Return the model of a checkpoint, in evaluation mode on the CPU, with its encoder if it has one.

    Args:
        name: see `evaluate_finished`.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or its model or stream was given from Python and is not
            given now.
    """
    path = find_checkpoint_file(name)
    run = _read(path)
    config = _configuration(run)
    _check_used(config, "model", "stream")
    with unchanged_randomness():
        stream = load_stream(config)
        strategy = build_strategy(config, stream, build_model(config, stream), torch.device("cpu"))
    _load(strategy.model, run, path)
    model: torch.nn.Module = strategy.model
    return (EncodedModel(stream.encoder.network(), model) if isinstance(stream, EncodedStream) else model).eval()


def _check_used(config: ExperimentConfig, *sections: str) -> None:
    """Refuse an object that was given in the place of what a run has by its configuration."""
    for section in sections:
        if section in LENT and (name := getattr(config, section).name) != CUSTOM:
            raise UserError(f"{section}: the run's configuration already has one, '{name}': remove it")


def _open(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], ExperimentConfig, torch.device]:
    """Return a checkpoint, its configuration with overrides, and the device that this asks for."""
    run = _read(path)
    quiet()
    config = _configuration(run, overrides)
    take_threads(config)
    return run, config, find_device(config.device)


def _configuration(run: dict[str, Any], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the configuration of a checkpoint; a mistake in it says which parts the run was made with."""
    about = run["about"]
    return from_stored(about["config"], overrides, about.get("imports", {}))


def _read(path: Path) -> dict[str, Any]:
    """Return a checkpoint, and say on standard error if parts of the user's own have changed since."""
    run = read_run(path)
    warn_of_changed_imports(Console(stderr=True), run["about"].get("imports", {}), f"the run of {path}")
    return run


def _load(model: torch.nn.Module, run: dict[str, Any], path: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        UserError: they are another model's.
    """
    try:
        model.load_state_dict(run["state"]["model"])
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not match its own configuration: {error}") from error


def _data(stream: Stream) -> list[Any]:
    """What tells a stream's data from another's: sequences are generated, and rows alone say little, so files count."""
    files = sorted(json.dumps(facts, sort_keys=True) for facts in stream.provenance.get("files", {}).values())
    return [files, *(stream.provenance.get(name) for name in ("split_sha256", "sequences_sha256"))]


def find_checkpoint_file(name: str, uri: str | None = None) -> Path:
    """Return the checkpoint that a name stands for, see `evaluate_finished`.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if is_file(path):
        return path
    if not is_folder(path):
        path = _directory_of_run(name, uri)
    if not (path / NAME).is_file():
        raise UserError(
            f"{path} contains no checkpoint ({NAME}): it was run with checkpoint.enabled=false, or not at all"
        )
    return path / NAME


def _directory_of_run(name: str, uri: str | None) -> Path:
    from cl_ovq.runs.groups import load_group

    group = load_group(name, uri)
    if len(group.runs) > 1:
        raise UserError(f"'{name}' has runs with {len(group.runs)} seeds: choose one of them")
    directory = Path(next(iter(group.runs.values())).output_dir)
    if not directory.is_dir():
        raise UserError(f"the directory of run '{name}', {directory}, does not exist: give its checkpoint")
    return directory


def _check_fit(own: Stream, other: Stream) -> None:
    if own.kind != other.kind:
        raise UserError(f"stream.name: '{other.name}' has {other.kind}, but the model was built for {own.kind}")
    if isinstance(own.samples, SequenceSamples):
        ours, theirs = _vocabulary(own), _vocabulary(other)
        if ours != theirs:
            raise UserError(f"stream.name: '{other.name}' has {theirs}, but the model was built for {ours}")
        return
    shape, wanted = (cast("TensorSamples", stream.samples).sample_shape for stream in (other, own))
    if shape != wanted:
        raise UserError(
            f"stream.name: '{other.name}' has samples of shape {list(shape)}, but the model was built for "
            f"{list(wanted)}"
        )
    if other.n_classes > own.n_classes:
        raise UserError(f"stream.name: '{other.name}' has {other.n_classes} classes, but the model has {own.n_classes}")
    if other.name == own.name:  # of other streams nobody expects that classes are the same
        for number, (name, learned) in enumerate(zip(other.class_names, own.class_names, strict=False)):
            if name != learned:
                raise UserError(
                    f"stream: class {number} is '{name}', but the model learned '{learned}' under that number: use "
                    "data with the same classes"
                )
    if other.scenario == "task_incremental" != own.scenario:
        raise UserError("stream.scenario: the model was built without task labels")


def _vocabulary(stream: Stream) -> str:
    features = cast("SequenceSamples", stream.samples).features
    return f"{stream.n_classes} tokens" if features is None else f"vectors of {features}"


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
