"""How well a trained model does on sequences of other lengths, and with dictionaries of other capacities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_ovq.errors import UserError
from cl_ovq.evaluation.records import CapacityRecord, DistanceRecord, Generalization, LengthRecord
from cl_ovq.metric_names import words
from cl_ovq.mixers import OVQAttention, sharpened
from cl_ovq.models.sequence import SequenceModel
from cl_ovq.training.criteria import OBJECTIVES, count_targets, has_target, target_losses
from streams import StreamDataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cl_ovq.config import EvaluationConfig
    from streams import SequenceSamples, Stream

PIECE = 512  # tokens that are fed at a time: what bounds memory, not what is computed
BATCH_TOKENS = 32_768  # tokens of all sequences that are fed together, over their whole length


class NotFiniteError(UserError):
    """What a trained model answers is not a number."""


def length_generalization(
    model: torch.nn.Module, stream: Stream, asked: EvaluationConfig, known: Generalization | None = None
) -> Generalization:
    """Return the records of all lengths and capacities that a configuration asks for.

    Args:
        model: in evaluation mode; a `SequenceModel` where anything is asked for.
        stream: of the sequences.
        asked: the section `evaluation`.
        known: records of this very model that were measured in the same way, and need not be measured again.

    Raises:
        UserError: the stream has no sequences of such a length.
        NotFiniteError: the model's outputs there are NaN.
    """
    amount = (asked.length_tokens, asked.split, asked.log_length_scaling)
    lengths = {record["tokens"]: record for record in (known["lengths"] if known else [])}
    missing = [length for length in asked.lengths if length not in lengths]
    lengths |= {record["tokens"]: record for record in evaluate_lengths(model, stream, missing, *amount)}

    at = asked.lengths or ([trained_length(stream)] if asked.capacities else [])
    capacities = {(record["capacity"], record["tokens"]): record for record in (known["capacities"] if known else [])}
    for capacity in asked.capacities:
        if missing := [length for length in at if (capacity, length) not in capacities]:
            found = evaluate_capacities(model, stream, [capacity], missing, *amount)
            capacities |= {(capacity, record["tokens"]): record for record in found}
    return {
        "lengths": [lengths[length] for length in asked.lengths],
        "capacities": [capacities[capacity, length] for capacity in asked.capacities for length in at],
    }


@torch.no_grad()
def evaluate_lengths(
    model: torch.nn.Module,
    stream: Stream,
    lengths: Sequence[int],
    tokens: int,
    split: str = "test",
    log_length_scaling: bool = False,
) -> list[LengthRecord]:
    """Evaluate a model at each length, fed in pieces with its state carried on.

    Args:
        model: a `SequenceModel`, in evaluation mode.
        stream: what it was trained on.
        lengths: in tokens.
        tokens: of all sequences of one length together, at least; every experience has one sequence at least.
        split: `test` or `validation`.
        log_length_scaling: whether attention over all tokens gets the inverse temperature times log(length) /
            log(trained length) where a sequence is longer than those trained on. Logits that do not grow with the
            number of tokens leave a token ever less of the attention; multiplying them by the logarithm of that number
            prevents it (Chiang and Cholak 2022, "Overcoming a theoretical limitation of self-attention").

    Raises:
        UserError: the stream has no sequences of such a length.
    """
    records = []
    device = next(model.parameters()).device
    trained = trained_length(stream) if lengths else 0
    for length in lengths:
        samples = sequences_of(stream, length, -(-tokens // length), split)
        assert isinstance(model, SequenceModel)  # no other takes sequences
        values, places = [], []
        factor = math.log(length) / math.log(trained) if log_length_scaling and length > trained > 1 else 1.0
        for rows in torch.arange(len(samples)).split(max(1, BATCH_TOKENS // length)):
            targets = samples.targets[rows]
            with sharpened(model, factor):
                found = _values(model, samples.gather(rows).to(device), targets.to(device), stream.kind).cpu()
            known = ~found.isnan()
            place = samples.distances[rows] if samples.distances is not None else torch.arange(1, length + 1)
            values.append(found[known])
            places.append(place.expand_as(found)[known])
        value, place = torch.cat(values).double(), torch.cat(places)
        records.append(
            LengthRecord(
                tokens=length,
                sequences=len(samples),
                quantity=OBJECTIVES[stream.kind].quantity,
                value=float(value.mean()),
                targets=count_targets(samples.targets),
                state_bytes=model.state_bytes(length),
                distances=_by_distance(value, place),
            )
        )
    return records


def evaluate_capacities(
    model: torch.nn.Module,
    stream: Stream,
    capacities: Sequence[int],
    lengths: Sequence[int],
    tokens: int,
    split: str = "test",
    log_length_scaling: bool = False,
) -> list[CapacityRecord]:
    """Evaluate a model with each capacity of its sequences' dictionaries, at each length.

    Nothing else changes: the weights are those that were trained, and growth follows its schedule with the capacity.

    Args:
        model: see `evaluate_lengths`.
        stream: what it was trained on.
        capacities: slots of each head's dictionary.
        lengths: in tokens; the greatest length that was trained on if empty.
        tokens: see `evaluate_lengths`.
        split: see `evaluate_lengths`.
        log_length_scaling: see `evaluate_lengths`.
    """
    records: list[CapacityRecord] = []
    for capacity in capacities:
        with _capacity(model, capacity):
            found = evaluate_lengths(
                model, stream, lengths or [trained_length(stream)], tokens, split, log_length_scaling
            )
        records += [CapacityRecord(capacity=capacity, **record) for record in found]
    return records


@contextmanager
def _capacity(model: torch.nn.Module, capacity: int) -> Iterator[None]:
    """Give the dictionaries that every sequence learns for itself another capacity."""
    layers = [module for module in model.modules() if isinstance(module, OVQAttention) and module.dictionary is None]
    kept = [layer.options for layer in layers]
    try:
        for layer in layers:
            layer.options = replace(layer.options, capacity=capacity)
        yield
    finally:
        for layer, options in zip(layers, kept, strict=True):
            layer.options = options


def trained_length(stream: Stream) -> int:
    """Return the tokens of a stream's sequences; of the longest ones, where they differ."""
    samples: Any = stream.samples
    return int(samples.inputs.shape[1])


def sequences_of(stream: Stream, length: int, count: int, split: str) -> SequenceSamples:
    """Return at least so many test or validation sequences of a length.

    Raises:
        UserError: the stream has none.
    """
    if stream.at_length is None:
        raise UserError(f"evaluation.lengths: '{stream.name}' has no sequences of other lengths: remove it")
    try:
        return stream.at_length(length, count, split)
    except StreamDataError as error:
        raise UserError(f"evaluation.lengths: {length}: {error}") from error


def _values(model: SequenceModel, x: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Return hits, bits or squared errors `[B, T]`; NaN where there is no target.

    Raises:
        NotFiniteError: the model's outputs are NaN.
    """
    states, found = None, []
    for piece, wanted in zip(x.split(PIECE, 1), targets.split(PIECE, 1), strict=True):
        outputs, states = model.forward_with_state(piece, states, return_state=True)
        if outputs.isnan().any():
            # Not to be taken for tokens without a target, nor for answers of class 0.
            raise NotFiniteError(f"the outputs for sequences of {x.shape[1]} tokens are not numbers")
        value = (outputs.argmax(-1) == wanted).float() if kind == "tokens" else target_losses(outputs, wanted)
        found.append((value / math.log(2) if kind == "bytes" else value).masked_fill(~has_target(wanted), torch.nan))
    return torch.cat(found, 1)


def _by_distance(values: Tensor, distances: Tensor) -> list[DistanceRecord]:
    """Average values in bins of distance from one power of two to the next."""
    bins = distances.double().log2().floor().long()
    records = []
    for number in bins.unique().tolist():
        inside = bins == number
        records.append(
            DistanceRecord(
                nearest=2**number,
                farthest=2 ** (number + 1) - 1,
                value=float(values[inside].mean()),
                targets=int(inside.sum()),
            )
        )
    return records


def mean_records(runs: Sequence[Sequence[LengthRecord]]) -> list[dict[str, Any]]:
    """Return records like a run's, with means over runs; distances that not every run has are left out.

    Args:
        runs: records of each run, at the same lengths.
    """
    records = []
    for at in zip(*runs, strict=True):
        near = [{d["nearest"]: d["value"] for d in record["distances"]} for record in at]
        common = sorted(set.intersection(*map(set, near)))
        distances = [{"nearest": n, "value": sum(each[n] for each in near) / len(near)} for n in common]
        value = sum(record["value"] for record in at) / len(at)
        records.append({**at[0], "value": value, "distances": distances})
    return records


def lengths_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], trained: int | None = None) -> Figure:
    """Draw runs over length, over distance at their greatest length, and over the size of the state.

    Args:
        runs: records, by the name of the run.
        trained: tokens of training sequences, marked by a line.
    """
    from cl_ovq.evaluation.drawing import legend, new_figure
    from cl_ovq.evaluation.style import GREY

    figure = new_figure(11, 3.8)
    over_length, over_distance, over_bytes = figure.subplots(1, 3, sharey=True)
    for name, records in runs.items():
        values = [record["value"] for record in records]
        (line,) = over_length.plot([record["tokens"] for record in records], values, marker="o", label=name)
        drawn = {"color": line.get_color(), "linestyle": line.get_linestyle()}
        farthest = max(records, key=lambda record: record["tokens"])
        near = [record["nearest"] for record in farthest["distances"]]
        over_distance.plot(near, [record["value"] for record in farthest["distances"]], marker=".", **drawn)
        over_bytes.plot([record["state_bytes"] for record in records], values, marker="o", **drawn)
    if trained is not None:
        over_length.axvline(trained, color=GREY, linestyle=":", linewidth=0.8)
    labels = ("tokens of a sequence", "distance in tokens, longest sequences", "bytes of a sequence's state")
    for axes, label in zip((over_length, over_distance, over_bytes), labels, strict=True):
        if any(place > 0 for line in axes.get_lines() for place in line.get_xdata()):
            axes.set_xscale("log", base=2)
        axes.set_xlabel(label)
    quantity = next(iter(runs.values()))[0]["quantity"]
    over_length.set_ylabel(words(quantity))
    if quantity == "accuracy":
        over_length.set_ylim(0, 1.02)
    legend(figure, over_length)
    return figure
