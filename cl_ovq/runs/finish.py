"""Ends a run: from what it has found to its result, its files and its figures."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from rich.console import Console

from cl_ovq.config import to_dict
from cl_ovq.errors import UnwrittenError
from cl_ovq.imports import digests
from cl_ovq.models.normalisation import count_statistics
from cl_ovq.paths import RESULTS, write_atomically
from cl_ovq.runs.provenance import code_revision, device_name, package_versions, peak_memory_bytes
from cl_ovq.runs.result import Evaluated, Provenance, Result, carried_bytes
from cl_ovq.runs.reuse import still_valid
from cl_ovq.runs.summary import describe_findings, draw_figures, figures_of, warn
from kernels.native.library import is_loaded as native_is_loaded

if TYPE_CHECKING:
    from cl_ovq.evaluation.records import Generalization
    from cl_ovq.runs.run import Run


def finish(run: Run) -> Result:
    """Evaluate at other lengths, put the result together, write it, draw it, and let the callbacks have it.

    Raises:
        UnwrittenError: the result cannot be written.
    """
    from cl_ovq.evaluation.gain import empty_state_accuracy
    from cl_ovq.evaluation.length_generalization import NotFiniteError, length_generalization
    from cl_ovq.training.divergence import DivergedError

    strategy, stream, asked = run.strategy, run.stream, run.config.evaluation
    generalization: Generalization = {"lengths": [], "capacities": []}
    if run.diverged is None:
        known = None if run.earlier is None else still_valid(run.earlier, run.config)
        try:
            generalization = length_generalization(run.model, stream, asked, known)
        except NotFiniteError as error:
            step, experiences = strategy.clock.train_iterations, len(stream.classes_per_experience)
            run.diverged = DivergedError(step, experiences, str(error))
    anytime = asked.every_steps is not None
    found = describe_findings(stream, strategy, run.recorders, asked.stop_after, anytime=anytime, diverged=run.diverged)
    empty = empty_state_accuracy(strategy.model, stream, run.test, run.device, asked.batch_size)
    if empty is not None:
        reached = found["metrics"]["accuracy"]
        found["metrics"] |= {"gain": None if reached is None else reached - empty, "empty_state_accuracy": empty}
    result = Result(
        run_id=run.tracker.run_id,
        run_name=run.name,
        output_dir=str(run.directory),
        config=to_dict(run.config),
        **found,
        **generalization,
        provenance=_provenance(run, found["dictionary"]["bytes"]),
    )
    result.provenance["memory_bytes"] = carried_bytes(result)
    write_result(result, run.directory, run.console)
    run.callbacks.result_written(run, result)
    if run.config.figures:
        draw_figures(result, figures_of(result, run.model, run.recorders), run.console)
        try:
            result.write(run.directory)
        except UnwrittenError as error:
            warn(run.console, "results", f"{error}: it does not list the figures")
    run.callbacks.run_end(run, result)
    return result


def _provenance(run: Run, dictionary_bytes: int) -> Provenance:
    """Return what a result must say of how it came about.

    A run that was finished before says how it was trained, and where and by which code it was evaluated since.
    """
    from cl_ovq.training.memory_usage import method_bytes, replay_bytes, replay_samples

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if run.earlier is not None:
        kept = run.earlier.provenance
        evaluated: Evaluated = {
            "code": code_revision(),
            "imports": digests(),
            "device": device_name(run.device),
            "finished": now,
        }
        return {**kept, "evaluated": [*kept.get("evaluated", []), evaluated]}
    return {
        "seed": run.config.seed,
        "code": code_revision(),
        "packages": package_versions(),
        "imports": run.about["imports"],
        "data": run.stream.provenance,
        "device": device_name(run.device),
        "operator": "native" if native_is_loaded() else "chunked",
        "wall_seconds": time.perf_counter() - run.started,
        "train_seconds": run.about["train_seconds"],
        "train_steps": run.strategy.clock.train_iterations,
        "peak_memory_bytes": peak_memory_bytes(run.device),
        "replay_samples": replay_samples(run.strategy),
        "replay_bytes": replay_bytes(run.strategy, run.stream.samples),
        "method_bytes": method_bytes(run.strategy),
        "dictionary_bytes": dictionary_bytes,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "running_statistics": count_statistics(run.model),
        "finished": now,
    }


def write_result(result: Result, directory: Path, console: Console) -> None:
    """Write a run's configuration and results: before anything else is done with them, so that nothing loses them.

    Raises:
        UnwrittenError: the results cannot be written.
    """
    result.artifacts[Path(RESULTS).stem] = RESULTS
    try:
        write_atomically(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(result.config)))
        result.artifacts["config"] = "config.yaml"
    except UnwrittenError as error:
        warn(console, "configuration", str(error))
    try:
        result.write(directory)
    except UnwrittenError as error:
        way = "free some space and rerun with --resume" if result.config["checkpoint"]["enabled"] else "free some space"
        raise UnwrittenError(f"{error}: {way}; the result follows", result.to_json()) from error
