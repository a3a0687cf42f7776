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

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.load import flatten
from cl_ovq.learning import quantity_of
from cl_ovq.mixers import layer_mixers
from cl_ovq.models import MIXED
from cl_ovq.provenance import code_revision, device_name
from cl_ovq.results import Result, summary_metrics, undefined_metrics
from cl_ovq.tracking import RunKey, StoreCheck, Tracker
from streams import TensorSamples

if TYPE_CHECKING:
    from streams import Stream


def check_store(config: ExperimentConfig, console: Console) -> None:
    """Open the store of the runs; where it does not answer, say so and go on.

    Raises:
        UserError: it can never be opened.
    """
    reason = StoreCheck(config.tracking.uri).wait()
    if reason is not None:
        console.print(f"[yellow]tracking:[/] {reason}; the run is kept on disk", highlight=False, soft_wrap=True)


def scenario_of(config: ExperimentConfig) -> str:
    """Return the scenario of a configuration's stream, which need not be built for it."""
    return str(getattr(config.stream.options, "scenario", "domain_incremental"))  # what all sequences are


def experiment_of(config: ExperimentConfig) -> str:
    """Return the name of the MLflow experiment that a run belongs to."""
    return config.tracking.experiment or f"{config.stream.name} {scenario_of(config)}"


def open_tracker(
    config: ExperimentConfig,
    directory: Path,
    name: str,
    device: torch.device,
    parent: Tracker | RunKey | None = None,
    *,
    resume: bool = False,
) -> Tracker:
    """Return the MLflow run of a configuration; the one that was last tracked from its directory if it is resumed."""
    return Tracker(
        directory,
        uri=config.tracking.uri,
        experiment=experiment_of(config),
        run_name=name,
        tags={"mlflow.runColor": run_color(name)} | _tags(config, device) | dict(config.tracking.tags),
        parameters=flatten(to_dict(config)),
        parent=parent,
        resume=resume,
    )


def _tags(config: ExperimentConfig, device: torch.device) -> dict[str, Any]:
    code = code_revision()
    mixers = layer_mixers(config.model) if config.model.name in MIXED else []
    return {
        "stream": config.stream.name,
        "scenario": scenario_of(config),
        "quantity": quantity_of(config.stream.name),
        "model": config.model.name,
        "head": config.model.head,
        "mixer": "+".join(dict.fromkeys(mixers)) or "none",
        "scope": config.dictionary.scope if "ovq" in mixers else "none",
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
    shapes = {name: facts[name] for name in ("image_shape", "sequence_shape") if name in facts}
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
    """Keep the trained model, and register it with MLflow if it reads images: what is served answers for images."""
    from cl_ovq.models.saving import save_model

    path = directory / "model.pt"
    save_model(path, model, config, stream)
    samples = stream.samples
    if not isinstance(samples, TensorSamples):
        tracker.log_file(path)
        return
    inputs: dict[str, Any] = {"images": [-1, *samples.image_shape]}
    if stream.scenario == "task_incremental":
        inputs["task_labels"] = [-1]
    tracker.log_model(path, inputs=inputs, outputs=stream.n_classes)


def log_summary(result: Result, tracker: Tracker) -> None:
    """Log what is known at the end. What is undefined is logged as NaN, so that every run has every summary metric."""
    found, steps = summary_metrics(result), result.provenance["train_steps"]
    experiences = len(result.matrix) - 1
    tracker.log(dict.fromkeys(undefined_metrics(result), math.nan), step=experiences)
    grown = {f"dictionary/{name}" for name in result.dictionary["history"][0]} if result.dictionary["history"] else ()
    tracker.log({name: found[name] for name in found if name not in result.metrics and name not in grown}, step=steps)
    if result.dictionary["history"]:
        for step, at_rest in sorted(_rests(result.dictionary["plateaus"], steps).items()):
            tracker.log({"dictionary/at_rest": at_rest}, step=step)


def _rests(plateaus: Sequence[Mapping[str, Any]], steps: int) -> dict[int, int]:
    """Return by training step where growth comes to rest (1) and sets in again (0), and which it does in the end."""
    found = {}
    for plateau in plateaus:
        found[plateau["start_step"]] = 1
        found[steps if plateau["end_step"] is None else plateau["end_step"]] = int(plateau["end_step"] is None)
    return {0: 0, steps: 0} | found
