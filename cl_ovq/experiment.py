"""Runs one experiment: stream, model, strategy, results matrix, figures, tracking."""

from __future__ import annotations

import datetime
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import OmegaConf
from rich.console import Console

from cl_ovq.checking import check_config, find_device
from cl_ovq.checkpoints.resume import check_same, find_checkpoint
from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import Matrix, all_task_accuracy
from cl_ovq.findings import Recorders, describe_findings, draw_figures, stream_metrics
from cl_ovq.layout import check_store, log_data, log_model, log_summary, open_tracker
from cl_ovq.learning import OBJECTIVES, OPTIMIZERS, STRATEGIES, derive_seed, seed_everything
from cl_ovq.models import MIXED, build_model
from cl_ovq.protocols import lacking_validation
from cl_ovq.provenance import code_revision, device_name, package_versions, peak_memory_bytes, reset_peak_memory
from cl_ovq.results import FILE_NAME, Result, carried_bytes, write_atomically
from cl_ovq.tracking import RUNS, RunKey, Tracker, warm_up
from cl_ovq.tracking.notes import run_note
from streams import StreamDataError, build_stream

if TYPE_CHECKING:
    # These import Avalanche or matplotlib, which `cl-ovq show` does not need.
    from avalanche.training.templates import SupervisedTemplate
    from matplotlib.figure import Figure

    from streams import Stream


def describe(config: ExperimentConfig) -> str:
    """Return the name of a run: model, strategy and seed."""
    model = config.model.name
    if model in MIXED:
        named = dict.fromkeys(config.model.pattern or [config.model.mixer])
        model = "+".join(f"{name}-{config.dictionary.scope}" if name == "ovq" else name for name in named)
    if config.model.head == "memory":
        model += "-memory"
    return config.tracking.run_name or f"{model} {config.strategy.name} seed {config.seed}"


AfterExperience = Callable[[int, int, Mapping[str, float], Mapping[str, Matrix]], None]


def run_experiment(
    config: ExperimentConfig,
    console: Console,
    parent: Tracker | RunKey | None = None,
    *,
    resume: bool = False,
    after_experience: AfterExperience | None = None,
) -> Result:
    """Run an experiment from data to tracking.

    Args:
        config: a loaded configuration.
        console: where progress is drawn; standard error, where standard output carries the result.
        parent: the MLflow run that this one belongs to.
        resume: whether to go on from the checkpoint in `output_dir`, if there is one; a run that is finished is read.
        after_experience: called with the number of experiences learned, how many there will be, the metrics so far,
            and the matrices by name, once the experience is evaluated and the checkpoint written.

    Raises:
        UserError: the configuration is wrong, or data is missing, or the checkpoint is damaged or another run's.
            Nothing has been written then.
    """
    begun = None
    if resume:
        if config.output_dir is None:
            raise UserError("--resume needs output_dir=DIR, the directory of the run that is to go on")
        folder = Path(config.output_dir)
        if (folder / FILE_NAME).exists():
            result = Result.read(folder)
            check_same(folder / FILE_NAME, result.config, config)
            console.print(f"the run in {folder} is finished: this is its result", soft_wrap=True)
            return result
        begun = find_checkpoint(folder, config)
        if begun is None:
            console.print(f"no checkpoint in {folder}: the run starts from the beginning", soft_wrap=True)
    check_config(config)
    quiet()
    if config.tracking.enabled:
        warm_up()  # MLflow is imported over there while data and model are made here
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    stream = load_stream(config)
    seed_everything(config.seed, "model")
    model = build_model(config, stream)

    name = describe(config)
    if config.tracking.enabled:
        check_store(config, console)  # a store that can never be opened leaves no directory behind
    directory = make_directory(config, name)
    if not config.tracking.enabled:
        return _run(config, stream, model, device, name, directory, None, console, begun, after_experience)
    with open_tracker(config, directory, name, device, parent, resume=begun is not None) as tracker:
        return _run(config, stream, model, device, name, directory, tracker, console, begun, after_experience)


def load_stream(config: ExperimentConfig) -> Stream:
    """Build the configured stream.

    Raises:
        UserError: its data is missing or damaged, or its options do not fit it.
    """
    from cl_ovq.evaluation.lengths import sequences_of

    try:
        stream = build_stream(config.stream.name, config.stream.options, seed=derive_seed(config.seed, "stream"))
    except StreamDataError as error:
        raise UserError(f"stream: {error}") from error
    for length in config.evaluation.lengths:
        sequences_of(stream, length, 1, config.evaluation.stream)
    if "validation" not in stream.benchmark.streams:
        empty = f"needs a validation stream: {lacking_validation(config.stream.options)} is 0"
        if config.memory.calibrate:
            raise UserError(f"memory.calibrate: {empty}")
        if config.strategy.name == "early_stopping":
            raise UserError(f"strategy.name: early_stopping {empty}")
    if config.evaluation.stream not in stream.benchmark.streams:
        raise UserError(
            f"evaluation.stream: '{stream.name}' has no stream '{config.evaluation.stream}' with these options: "
            f"known: {', '.join(stream.benchmark.streams)}"
        )
    return stream


def _run(
    config: ExperimentConfig,
    stream: Stream,
    model: torch.nn.Module,
    device: torch.device,
    name: str,
    directory: Path,
    tracker: Tracker | None,
    console: Console,
    begun: dict[str, Any] | None,
    after_experience: AfterExperience | None,
) -> Result:
    """Train and evaluate over the stream, from the beginning or a checkpoint on, and write what was found."""
    from cl_ovq.evaluation.census import CensusRecorder
    from cl_ovq.evaluation.dictionaries import DictionaryRecorder
    from cl_ovq.evaluation.lengths import evaluate_beside
    from cl_ovq.evaluation.matrix import MatrixRecorder
    from cl_ovq.learning.footprint import method_bytes, replay_bytes, replay_samples

    started = time.perf_counter() - (begun["about"]["wall_seconds"] if begun else 0.0)
    if tracker is not None:
        log_data(stream, config.evaluation.stream, tracker)
    reset_peak_memory(device)
    seed_everything(config.seed, "training")
    recorders = Recorders(
        MatrixRecorder(stream.classes_per_experience, stream.kind),
        DictionaryRecorder(config.evaluation.dictionary_every),
        CensusRecorder(),
    )
    console.print(f"[bold]{name}[/] on {stream.name}, {stream.scenario.replace('_', '-')}")
    about = {"config": to_dict(config), "train_seconds": 0.0, "wall_seconds": 0.0}
    if begun is not None:
        about["train_seconds"] = begun["about"]["train_seconds"]
    kept = _Kept(directory if config.checkpoint.enabled else None, about, started, begun, after_experience)
    strategy = _train(config, stream, model, device, recorders, tracker, console, kept)
    asked = config.evaluation
    result = Result(
        run_id=tracker.run_id if tracker else None,
        run_name=name,
        output_dir=str(directory),
        config=to_dict(config),
        **describe_findings(stream, strategy, recorders, asked.stop_after, anytime=asked.every_steps is not None),
        **evaluate_beside(model, stream, asked, device),
        provenance={
            "seed": config.seed,
            "code": code_revision(),
            "packages": package_versions(),
            "data": stream.provenance,
            "device": device_name(device),
            "wall_seconds": time.perf_counter() - started,
            "train_seconds": about["train_seconds"],
            "train_steps": strategy.clock.train_iterations,
            "peak_memory_bytes": peak_memory_bytes(device),
            "replay_samples": replay_samples(strategy),
            "replay_bytes": replay_bytes(strategy, stream.samples),
            "method_bytes": method_bytes(strategy),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )
    result.provenance["dictionary_bytes"] = result.dictionary["bytes"]
    result.provenance["memory_bytes"] = carried_bytes(result)
    if tracker is not None and config.tracking.log_model:
        log_model(config, stream, model, directory, tracker)
    _write(result, draw_figures(result, model, recorders), directory, tracker)
    return result


class _Kept(NamedTuple):
    """What checkpoints need beside the run itself: where they go, what they tell, and the one to go on from."""

    folder: Path | None
    about: dict[str, Any]
    started: float
    begun: dict[str, Any] | None
    after_experience: AfterExperience | None


def _train(
    config: ExperimentConfig,
    stream: Stream,
    model: torch.nn.Module,
    device: torch.device,
    recorders: Recorders,
    tracker: Tracker | None,
    console: Console,
    kept: _Kept,
) -> SupervisedTemplate:
    """Learn experience after experience, evaluating before the first and after each."""
    from cl_ovq.checkpoints.plugin import Checkpoints
    from cl_ovq.checkpoints.state import RunState
    from cl_ovq.evaluation.anytime import AnytimeEvaluation
    from cl_ovq.learning.progress import ExperienceProgress

    experiences = slice(config.evaluation.stop_after)
    train = list(stream.benchmark.streams["train"])[experiences]
    test = stream.benchmark.streams[config.evaluation.stream][experiences]
    joint, objective = config.strategy.name == "joint", OBJECTIVES[stream.kind]
    parts = [(len(train), train)] if joint else list(enumerate(train, start=1))
    progress = ExperienceProgress(console, len(parts))
    strategy = build_strategy(config, stream, model, device, metrics=recorders, progress=progress, tracker=tracker)
    checkpoints = Checkpoints(
        RunState(strategy, stream, recorders), kept.folder, config.checkpoint.every_steps, kept.about, kept.started
    )
    if config.evaluation.every_steps is not None:
        strategy.plugins.append(AnytimeEvaluation(recorders.matrix, test, config.evaluation.every_steps))
    strategy.plugins.append(checkpoints)
    if kept.begun is None:
        strategy.eval(test)
    else:
        checkpoints.resume(kept.begun)
        console.print(f"going on after {checkpoints.done} of {len(parts)} experiences", highlight=False)
    try:
        for row, data in parts[checkpoints.done :]:
            strategy.train(data, eval_streams=[])
            recorders.matrix.row = row
            strategy.eval(test)
            matrices = recorders.so_far(len(train) if joint else row)
            metrics = stream_metrics(matrices, objective)
            if objective.quantity == "accuracy":
                whole = recorders.so_far(config.evaluation.stop_after)["accuracy"]
                metrics["all_task_accuracy"] = all_task_accuracy(whole)[row - 1]
            if tracker is not None:
                tracker.log(metrics, step=row)
            checkpoints.done += 1
            checkpoints.save(within=False)
            if kept.after_experience is not None:
                kept.after_experience(row, len(train), metrics, matrices)
    finally:
        progress.close()
    model.eval()
    return strategy


def _write(result: Result, drawn: Mapping[str, Figure], directory: Path, tracker: Tracker | None) -> None:
    """Write a run's files, and hand them and the summary metrics to the tracker."""
    for file, figure in drawn.items():
        figure.savefig(directory / file, dpi=120)
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(result.config)))
    result.artifacts = {Path(file).stem: file for file in (FILE_NAME, "config.yaml", *drawn)}
    result.write(directory)
    if tracker is not None:
        log_summary(result, tracker)
        tracker.tag({"mlflow.note.content": run_note(result)})
        for file in result.artifacts.values():
            tracker.log_file(directory / file)


def build_strategy(
    config: ExperimentConfig,
    stream: Stream,
    model: torch.nn.Module,
    device: torch.device,
    *,
    metrics: Sequence[Any] = (),
    progress: Any = None,
    tracker: Tracker | None = None,
    batched: bool = True,
) -> SupervisedTemplate:
    """Return the configured Avalanche strategy, with the plugins that this platform adds to it.

    Args:
        config: the configuration.
        stream: its stream.
        model: its model.
        device: where to compute.
        metrics: Avalanche metrics to compute.
        progress: a plugin that shows progress.
        tracker: where metrics are logged.
        batched: whether batches are fetched as tensors; otherwise sample by sample, as Avalanche does.
    """
    from avalanche.training.plugins import EvaluationPlugin

    from cl_ovq.evaluation.logger import MetricLogger
    from cl_ovq.evaluation.training import TrainingLoss
    from cl_ovq.learning.auxiliary import AuxiliaryLoss
    from cl_ovq.learning.batches import BatchedData
    from cl_ovq.learning.dictionary import DictionaryScope
    from cl_ovq.learning.drift import DictionaryRefresh, FirstExperienceEncoder
    from cl_ovq.learning.memory import MemoryWrites

    plugins: list[Any] = [BatchedData(stream.samples)] if batched else []
    plugins += [DictionaryScope(config.dictionary.scope), AuxiliaryLoss()]
    if config.model.head == "memory":
        plugins.append(MemoryWrites(stream, calibrate=config.memory.calibrate))
    if config.model.train_encoder == "first_experience":
        plugins.append(FirstExperienceEncoder())
    if config.dictionary.refresh:
        plugins.append(DictionaryRefresh(stream))
    if progress is not None:
        plugins.append(progress)
    if tracker is not None:
        evaluator = EvaluationPlugin(*metrics, TrainingLoss(), loggers=[MetricLogger(tracker.log)], collect_all=False)
    else:
        evaluator = EvaluationPlugin(*metrics, collect_all=False)
    common = {
        "model": model,
        "optimizer": OPTIMIZERS[config.optimizer.name](model.parameters(), config.optimizer),
        "criterion": OBJECTIVES[stream.kind].criterion(),
        "train_mb_size": config.strategy.batch_size,
        "train_epochs": config.strategy.epochs,
        "eval_mb_size": config.evaluation.batch_size,
        "device": device,
        "evaluator": evaluator,
    }
    return STRATEGIES[config.strategy.name](config.strategy, plugins, common, stream)


def make_directory(config: ExperimentConfig, name: str) -> Path:
    """Make the directory of a run: the configured one, or a new one under `runs/`."""
    if config.output_dir is not None:
        directory = Path(config.output_dir)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir: cannot make the directory {directory}: {error.strerror}") from error
        return directory
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    parent = RUNS / config.stream.name
    for attempt in range(1000):
        directory = parent / (f"{name.replace(' ', '-')}-{moment}" + (f"-{attempt}" if attempt else ""))
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory
    raise UserError(f"output_dir: no free name for a run's directory under {parent}")


def quiet() -> None:
    """Silence what the libraries say about themselves; none of it concerns the run."""
    warnings.filterwarnings("ignore", message="No loggers specified")
    warnings.filterwarnings("ignore", message="no QP solver found")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
