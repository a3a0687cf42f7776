"""Runs one experiment: stream, model, strategy, results matrix, figures, tracking."""

from __future__ import annotations

import datetime
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import OmegaConf
from rich.console import Console

from cl_ovq.checkpoints.resume import check_same, find_checkpoint
from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import Matrix, all_metrics, forward_transfer, part
from cl_ovq.layout import check_store, log_data, log_model, log_summary, open_tracker
from cl_ovq.learning import BUFFERED, OBJECTIVES, OPTIMIZERS, STRATEGIES, Objective, derive_seed, seed_everything
from cl_ovq.learning.strategies import OF_SEQUENCES, PROTOTYPES
from cl_ovq.mixers import dictionaries
from cl_ovq.models import MIXED, build_model, check_model
from cl_ovq.provenance import code_revision, device_name, package_versions, peak_memory_bytes, reset_peak_memory
from cl_ovq.registry import Registry
from cl_ovq.results import FILE_NAME, Result, carried_bytes, to_lists, to_matrix, write_atomically
from cl_ovq.tracking import RUNS, RunKey, Tracker, warm_up
from cl_ovq.tracking.notes import run_note
from streams import StreamDataError, build_stream

if TYPE_CHECKING:
    # These import Avalanche or matplotlib, which `cl-ovq show` does not need.
    from avalanche.training.templates import SupervisedTemplate
    from matplotlib.figure import Figure

    from cl_ovq.evaluation.census import CensusRecorder
    from cl_ovq.evaluation.dictionaries import DictionaryRecorder
    from cl_ovq.evaluation.matrix import MatrixRecorder
    from streams import Stream


def check_config(config: ExperimentConfig) -> None:
    """Check names and combinations that need more than the configuration's own schema.

    Raises:
        UserError: naming the key and what is valid.
    """
    check_model(config.model)
    names: tuple[tuple[str, Registry[Any], str], ...] = (
        ("strategy.name", STRATEGIES, config.strategy.name),
        ("optimizer.name", OPTIMIZERS, config.optimizer.name),
    )
    for key, registry, name in names:
        try:
            registry[name]
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    _check_dictionary(config)
    if config.model.head == "memory" and config.strategy.name in (*PROTOTYPES, "early_stopping"):
        raise UserError(
            f"model.head: a memory does not go with strategy.name={config.strategy.name}, which "
            + ("is a head of its own" if config.strategy.name in PROTOTYPES else "does not know its last epoch")
            + ": use model.head=linear"
        )
    find_device(config.device)
    if config.output_dir is not None and (Path(config.output_dir) / FILE_NAME).exists():
        raise UserError(f"output_dir: {config.output_dir} already holds the results of a run: name another directory")


def _check_dictionary(config: ExperimentConfig) -> None:
    dictionary = config.dictionary
    if dictionary.refresh and config.strategy.name not in BUFFERED:
        raise UserError(
            f"dictionary.refresh: strategy.name={config.strategy.name} has no replay buffer to write from: "
            f"known: {', '.join(BUFFERED)}"
        )
    if dictionary.sums and (dictionary.half_life is not None or dictionary.learning_rate != "adaptive"):
        raise UserError("dictionary.sums: needs dictionary.learning_rate=adaptive and dictionary.half_life=null")


def find_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is a GPU where there is one.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: unknown device '{name}': known: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: unknown device '{name}': known: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device: '{name}' is not there: this machine has {torch.cuda.device_count()} GPUs")
    return device


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
    with open_tracker(config, stream.scenario, directory, name, device, parent, resume=begun is not None) as tracker:
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
    if stream.kind != "classes" and config.strategy.name not in OF_SEQUENCES:
        raise UserError(
            f"strategy.name: '{config.strategy.name}' learns classes of images, and '{stream.name}' has sequences: "
            f"known: {', '.join(OF_SEQUENCES)}"
        )
    for length in config.evaluation.lengths:
        sequences_of(stream, length, 1)
    if config.memory.calibrate and "validation" not in stream.benchmark.streams:
        raise UserError("memory.calibrate: needs a validation stream: stream.validation_fraction is 0")
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
    from cl_ovq.evaluation.lengths import as_data, evaluate_lengths
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
    result = Result(
        run_id=tracker.run_id if tracker else None,
        run_name=name,
        output_dir=str(directory),
        config=to_dict(config),
        **_findings(stream, strategy, recorders, config.evaluation.stop_after),
        lengths=as_data(
            evaluate_lengths(model, stream, config.evaluation.lengths, config.evaluation.length_tokens, device)
        ),
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
    _write(result, _draw(result, model, recorders), directory, tracker)
    return result


class _Kept(NamedTuple):
    """What checkpoints need beside the run itself: where they go, what they tell, and the one to go on from."""

    folder: Path | None
    about: dict[str, Any]
    started: float
    begun: dict[str, Any] | None
    after_experience: AfterExperience | None


class Recorders(NamedTuple):
    """What is recorded while a strategy trains."""

    matrix: MatrixRecorder
    growth: DictionaryRecorder
    census: CensusRecorder

    def so_far(self, learned: int | None) -> dict[str, Matrix]:
        """Return the results matrices of the first experiences, of all for None, by name."""
        matrices = self.matrix.result()
        return matrices if learned is None else {name: part(matrix, learned) for name, matrix in matrices.items()}


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
    from cl_ovq.learning.progress import ExperienceProgress

    experiences = slice(config.evaluation.stop_after)
    train = list(stream.benchmark.streams["train"])[experiences]
    test = stream.benchmark.streams[config.evaluation.stream][experiences]
    joint = config.strategy.name == "joint"
    parts = [(len(train), train)] if joint else list(enumerate(train, start=1))
    progress = ExperienceProgress(console, len(parts))
    strategy = build_strategy(config, stream, model, device, metrics=recorders, progress=progress, tracker=tracker)
    checkpoints = Checkpoints(
        RunState(strategy, stream, recorders), kept.folder, config.checkpoint.every_steps, kept.about, kept.started
    )
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
            metrics = _stream_metrics(matrices, OBJECTIVES[stream.kind])
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


def _findings(
    stream: Stream, strategy: SupervisedTemplate, recorders: Recorders, stop_after: int | None
) -> dict[str, Any]:
    """Return the fields of a result that say what was found."""
    from cl_ovq.evaluation.dictionaries import summarize
    from cl_ovq.evaluation.plateaus import growth_plateaus, plateau_tokens

    matrices, objective = recorders.so_far(stop_after), OBJECTIVES[stream.kind]
    metrics = _metrics(matrices, objective)
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
    metrics = all_metrics(objective.sign * matrices[objective.quantity])
    if "task_masked_accuracy" in matrices:
        masked = all_metrics(matrices["task_masked_accuracy"])[forward_transfer.__name__]
        metrics["forward_transfer_task_masked"] = masked
    return metrics


def _stream_metrics(matrices: Mapping[str, Matrix], objective: Objective) -> dict[str, float]:
    """Return the metrics of a stream as far as they are defined."""
    return {name: value for name, value in _metrics(matrices, objective).items() if value is not None}


def _draw(result: Result, model: torch.nn.Module, recorders: Recorders) -> dict[str, Figure]:
    """Return the figures of a run by file name."""
    from cl_ovq.evaluation import figures
    from cl_ovq.evaluation.lengths import lengths_figure

    name = result.run_name
    drawn = {"matrix.png": figures.matrix_figure(to_matrix(result.matrix), name, result.quantity)}
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
