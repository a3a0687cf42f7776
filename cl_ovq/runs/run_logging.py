"""What MLflow is told of an experiment, and under which names."""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.custom import CUSTOM
from cl_ovq.config.keys import flatten
from cl_ovq.encoders.stream import EncodedStream
from cl_ovq.metric_names import FINAL, QUANTITIES
from cl_ovq.mixers import layer_mixers, scope_of
from cl_ovq.runs.provenance import code_revision, device_name
from cl_ovq.runs.result import Result, summary_metrics, undefined_metrics
from cl_ovq.tracking import NullTracker, RunKey, StoreCheck, Tracker
from cl_ovq.tracking.notes import run_note
from cl_ovq.training import quantity_of
from streams.samples import named_inputs

if TYPE_CHECKING:
    from streams import Stream


def check_store(config: ExperimentConfig, name: str, console: Console) -> None:
    """Open the store of the runs, and check that it would take one; where it does not answer, say so and go on.

    Args:
        config: of the run.
        name: of the run.
        console: where it is said.

    Raises:
        UserError: it can never be opened, or would refuse the run.
    """
    names = {"experiment": experiment_of(config), "run_name": name, "tags": list(config.tracking.tags)}
    reason = StoreCheck(config.tracking.uri, names).wait()
    if reason is not None:
        console.print(
            f"[yellow]tracking:[/] {escape(reason)}; the run is stored on disk", highlight=False, soft_wrap=True
        )


def scenario_of(config: ExperimentConfig) -> str:
    """Return the scenario of a configuration's stream, which need not be built for it."""
    return str(getattr(config.stream.options, "scenario", "domain_incremental"))  # what all sequences are


def experiment_of(config: ExperimentConfig) -> str:
    """Return the name of the MLflow experiment that a run belongs to."""
    named: str | None = to_dict(config)["tracking"]["experiment"]
    if named is not None:
        return named
    return f"{config.stream.name} {scenario_of(config)}"


def open_tracker(
    config: ExperimentConfig,
    directory: Path,
    name: str,
    device: torch.device,
    parent: Tracker | RunKey | None = None,
    *,
    resume: bool | None = False,
) -> Tracker:
    """Return the MLflow run of a configuration; the one that was last tracked from its directory if it is resumed.

    `resume` is None where there was nothing to resume from: see `Tracker`.

    Where tracking is off, what it returns forgets everything.
    """
    if not config.tracking.enabled:
        return NullTracker()
    stored = to_dict(config)
    return Tracker(
        directory,
        uri=config.tracking.uri,
        experiment=experiment_of(config),
        run_name=name,
        tags={"mlflow.runColor": run_color(name)} | _tags(config, device) | stored["tracking"]["tags"],
        parameters=flatten(stored),
        parent=parent,
        resume=resume,
    )


def _tags(config: ExperimentConfig, device: torch.device) -> dict[str, Any]:
    code = code_revision()
    mixers = layer_mixers(config.model)
    return {
        "stream": config.stream.name,
        "scenario": scenario_of(config),
        "quantity": quantity_of(config.stream.name),
        "encoder": config.encoder.name,
        "model": config.model.name,
        "head": config.model.head,
        "mixer": "+".join(dict.fromkeys(mixers)) or "none",
        "scope": scope_of(config.dictionary),
        "strategy": config.strategy.name,
        "seed": config.seed,
        "sweep": "none",
        "device": device_name(device),
        "revision": code["revision"] or code["version"],
        "dirty": code["dirty"],
    }


def run_color(name: str) -> str:
    """Return the colour of a run in MLflow's charts, by its name: the same for all seeds.

    MLflow's own colours are few, and runs side by side get the same.
    """
    digest = hashlib.sha256(name.rpartition(" seed ")[0].encode() or name.encode()).digest()
    hue, shade = digest[25], digest[0]  # of all bytes the one that sets the runs of the demo furthest apart
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue / 256, 0.32 + shade / 1024, 0.65))
    return f"#{red:02x}{green:02x}{blue:02x}"


def log_data(stream: Stream, evaluation: str, tracker: Tracker) -> None:
    """Name the data set that the run uses."""
    facts = stream.provenance
    shapes = {name: facts[name] for name in ("image_shape", "vector_shape", "sequence_shape") if name in facts}
    tracker.log_input(
        stream.name,
        facts["split_sha256"][:36],
        source={"uri": facts["source"], "files": facts["files"]},
        profile={"sizes": facts["sizes"]} | shapes,
        context=f"train, {evaluation}",
    )


def log_model(
    config: ExperimentConfig, stream: Stream, model: torch.nn.Module, directory: Path, tracker: Tracker
) -> None:
    """Keep the trained model, and register it with MLflow unless it reads sequences: single samples are served.

    One that was given from Python, or for a stream that was, cannot be built again to be served: its file is kept.
    """
    from cl_ovq.models.saving import save_model

    path = directory / "model.pt"
    save_model(path, model, config, stream)
    samples = (stream.raw if isinstance(stream, EncodedStream) else stream).samples
    shape = getattr(samples, "sample_shape", None)
    if shape is None or CUSTOM in (config.model.name, config.stream.name):
        tracker.log_file(path)
        return
    inputs: dict[str, Any] = {named_inputs(shape): [-1, *shape]}
    if stream.scenario == "task_incremental":
        inputs["task_labels"] = [-1]
    tracker.log_model(path, inputs=inputs, outputs=stream.n_classes)


def log_result(result: Result, directory: Path, tracker: Tracker) -> None:
    """Hand the tracker a run's summary metrics, its note and its files; one that diverged gets a tag that says so."""
    _log_summary(result, tracker)
    tracker.tag({"mlflow.note.content": run_note(result)})
    if result.verdict is not None:
        tracker.tag({"diverged": result.verdict})
    for file in result.artifacts.values():
        tracker.log_file(directory / file)


def _log_summary(result: Result, tracker: Tracker) -> None:
    """Log what is known at the end. What is undefined is logged as NaN, so that every run has every summary metric."""
    found, steps = summary_metrics(result), result.provenance["train_steps"]
    experiences = len(result.matrix) - 1
    tracker.log({name: found[name] for name in FINAL if name in found}, step=experiences)
    tracker.log(dict.fromkeys(undefined_metrics(result), math.nan), step=experiences)
    for age, value in enumerate(result.by_age):
        if value is not None:
            tracker.log({f"{result.quantity}/by_age": QUANTITIES[result.quantity] * value}, step=age)
    grown = {f"dictionary/{name}" for name in result.dictionary["history"][0]} if result.dictionary["history"] else ()
    tracker.log({name: found[name] for name in found if name not in result.metrics and name not in grown}, step=steps)
    if result.dictionary["history"]:
        for step, at_rest in sorted(_rests(result.dictionary["plateaus"], steps).items()):
            tracker.log({"dictionary/at_rest": at_rest}, step=step)
    # A step later for each time that the finished model was evaluated again: MLflow shows the last.
    tracker.log(_generalization(result), step=steps + len(result.provenance.get("evaluated", [])))


def _generalization(result: Result) -> dict[str, float]:
    """Return what the trained model reaches at other lengths and with other capacities, by the name of a metric."""
    lengths = {f"{record['quantity']}/tokens_{record['tokens']}": record["value"] for record in result.lengths}
    capacities = {
        f"{record['quantity']}/tokens_{record['tokens']}/capacity_{record['capacity']}": record["value"]
        for record in result.capacities
    }
    return lengths | capacities


def _rests(plateaus: Sequence[Mapping[str, Any]], steps: int) -> dict[int, int]:
    """Return by training step where growth comes to rest (1) and sets in again (0), and which it does in the end."""
    found = {}
    for plateau in plateaus:
        found[plateau["start_step"]] = 1
        found[steps if plateau["end_step"] is None else plateau["end_step"]] = int(plateau["end_step"] is None)
    return {0: 0, steps: 0} | found
