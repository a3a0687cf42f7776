"""One run, from configuration to result: `run_experiment` is the whole of it on one page."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.identity import differences, identity
from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import all_task_accuracy
from cl_ovq.imports import with_digests
from cl_ovq.models import HEADS, build_model
from cl_ovq.paths import RESULTS
from cl_ovq.runs.callbacks import Callback, Callbacks, Checkpointing, Progress, Tracking
from cl_ovq.runs.checking import check_config, find_device
from cl_ovq.runs.checkpoints import NAME as CHECKPOINT
from cl_ovq.runs.checkpoints.resume import check_same, find_checkpoint
from cl_ovq.runs.contract import check_contract, check_head
from cl_ovq.runs.finish import finish, write_result
from cl_ovq.runs.folder import clear, run_folder
from cl_ovq.runs.provenance import reset_peak_memory, warn_of_changed_imports
from cl_ovq.runs.result import Result
from cl_ovq.runs.reuse import complete
from cl_ovq.runs.run_logging import check_store, open_tracker
from cl_ovq.runs.setup import build_strategy, describe, load_stream, quiet, take_threads
from cl_ovq.runs.summary import Recorders, stream_metrics, warn
from cl_ovq.seeding import unchanged_randomness
from cl_ovq.strategies import STRATEGIES
from cl_ovq.tracking import RunKey, Tracker, warm_up
from cl_ovq.training import OBJECTIVES, seed_everything
from streams import StreamDataError

if TYPE_CHECKING:
    # These import Avalanche, which `cl-ovq show` does not need.
    from avalanche.training.templates import SupervisedTemplate

    from cl_ovq.runs.checkpoints.plugin import Checkpoints
    from cl_ovq.runs.checkpoints.resume import Begun
    from cl_ovq.training.divergence import DivergedError
    from streams import Stream


def run_experiment(
    config: ExperimentConfig,
    console: Console,
    parent: Tracker | RunKey | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Run an experiment from data to tracking. One that diverges is a result too, see `Result.diverged`.

    Args:
        config: a loaded configuration.
        console: where progress is drawn; standard error, where standard output carries the result.
        parent: the MLflow run that this one belongs to.
        resume: whether to go on from the checkpoint in `output_dir`, if there is one; a run that is finished is read,
            and what it has not measured yet on its trained model is measured.
        overwrite: whether to take the place of the run in `output_dir`, if there is one.
        callbacks: called as the run goes, after its checkpoint is written and MLflow has its metrics.

    Raises:
        UserError: the configuration is wrong, or data is missing, or the checkpoint is damaged or another run's, or
            another run holds the folder. Nothing has been written then.
    """
    with Run.open(config, console, parent, resume=resume, overwrite=overwrite, callbacks=callbacks) as run:
        if run.result is not None:  # it was finished before
            return run.result
        try:
            with run.until_divergence():
                if not run.resumed:
                    run.evaluate(row=0)
                for row, data in run.remaining():
                    run.strategy.train(data, eval_streams=[])
                    run.evaluate(row)
                    run.callbacks.experience_end(run, row)
            return finish(run)
        except KeyboardInterrupt:
            run.say_interrupted()
            raise


def schedule(config: ExperimentConfig, train: Sequence[Any]) -> list[tuple[int, Any]]:
    """Return what the strategy trains on in turn: the row of the results matrix that comes after, and the data.

    Args:
        config: names the strategy; joint training has all data at once, and every other one an experience at a time.
        train: the experiences.
    """
    if STRATEGIES[config.strategy.name].at_once:
        return [(len(train), train)]
    return list(enumerate(train, start=1))


class Run:
    """A run that is going on, made by `Run.open`.

    Of a run that was finished before, only the first six attributes are there.

    Attributes:
        config: its configuration.
        name: model, strategy and seed in words.
        directory: where its files go; no other run writes there meanwhile.
        console: where progress is drawn.
        result: of a run that was finished before; None for any other.
        earlier: the result of a run that was finished before, but has not measured all that is asked for now; its model
            is taken from its checkpoint.
        resumed: whether it goes on from a checkpoint.
        stream, model, device, strategy: what is learned, by what, where and how.
        tracker: the MLflow run; one that forgets everything where tracking is off.
        recorders: what is measured.
        checkpoints: counts the experiences that are over, and the seconds.
        callbacks: called as the run goes.
        about: what a checkpoint tells of the run: configuration, `imports`, `train_seconds`, `wall_seconds`.
        started: when it began, by `time.perf_counter`, as if it had never been interrupted.
        test: experiences that it is evaluated on.
        experiences: that are learned altogether.
        metrics: of the experiences so far, by name; empty before the first one is over, and after one that
            `evaluation.rows` leaves out.
        diverged: how training ended, if it did not come to its end.
    """

    resumed: bool
    stream: Stream
    model: torch.nn.Module
    device: torch.device
    strategy: SupervisedTemplate
    tracker: Tracker
    recorders: Recorders
    checkpoints: Checkpoints
    callbacks: Callback
    about: dict[str, Any]
    started: float
    test: Any
    experiences: int

    def __init__(self, config: ExperimentConfig, directory: Path, console: Console) -> None:
        self.config = config
        self.name = describe(config)
        self.directory = directory
        self.console = console
        self.result: Result | None = None
        self.earlier: Result | None = None
        self.metrics: dict[str, float] = {}
        self.diverged: DivergedError | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        config: ExperimentConfig,
        console: Console,
        parent: Tracker | RunKey | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> Iterator[Run]:
        """Check everything, hold the folder, and make what is needed to train: see `run_experiment`."""
        check_config(config)
        if config.seeds > 1:
            raise UserError(
                f"seeds: run_experiment makes only one run, not {config.seeds}: use cl_ovq.runs.seeds.run_seeds"
            )
        if resume and config.output_dir is None:
            raise UserError("--resume needs output_dir=DIR, the directory of the run to resume")
        with ExitStack() as held:
            folder = run_folder(config, describe(config), resume=resume, overwrite=overwrite)
            run = cls(config, held.enter_context(folder), console)
            begun = run._find_earlier() if resume else None
            if run.result is None:
                run._load()
                run._build(begun)
                if overwrite:
                    clear(run.directory)
                again = True if run.resumed else None if resume else False
                tracker = open_tracker(config, run.directory, run.name, run.device, parent, resume=again)
                with unchanged_randomness():
                    run.tracker = held.enter_context(tracker)
                run._begin(callbacks)
            yield run

    def _find_earlier(self) -> Begun | None:
        """Take the result of the folder's run if it is finished, and otherwise return its checkpoint if there is one.

        Raises:
            UserError: it is damaged, or another run's; or it lacks what is asked for, and has no checkpoint.
        """
        results = self.directory / RESULTS
        if not results.exists():
            begun = find_checkpoint(self.directory, self.config)
            if begun is None:
                self._say(f"no checkpoint in {self.directory}: the run starts from the beginning")
            else:
                warn_of_changed_imports(self.console, begun.run["about"].get("imports", {}), "this run")
            return begun
        found = Result.read(results)
        check_same(results, found.config, self.config)
        warn_of_changed_imports(self.console, found.provenance.get("imports", {}), "this run")
        changed = differences(identity(to_dict(self.config)).evaluation, identity(found.config).evaluation)
        self.result = complete(found, self.config) if changed else found
        if self.result is not None:
            self._say(f"the run in {self.directory} is already finished: this is its result")
            if changed:
                write_result(self.result, self.directory, self.console)
            return None
        begun = find_checkpoint(self.directory, self.config)
        if begun is None:
            raise UserError(
                f"{results} was measured with other values of {', '.join(changed)}, and there is no checkpoint with a "
                "model to evaluate: rerun with --overwrite and checkpoint.enabled=true"
            )
        self.earlier = found
        self._say(
            f"the run in {self.directory} is already finished: evaluating its model with the new {', '.join(changed)}"
        )
        return begun

    def say_interrupted(self) -> None:
        """Say whether there is something to resume."""
        if (self.directory / CHECKPOINT).exists():
            self._say(f"interrupted: to continue, add --resume output_dir={self.directory}")
        else:
            self._say("interrupted before the first checkpoint: there is nothing to resume")

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)

    def _load(self) -> None:
        """Build stream and model, and see whether MLflow's store would take the run.

        Raises:
            UserError: one of them cannot be had as it is configured.
        """
        config = self.config
        quiet()
        from cl_ovq.models.heads import unwrap

        if config.tracking.enabled:
            warm_up()  # MLflow is imported over there while data and model are made here
        take_threads(config)
        self.device = find_device(config.device)
        self.stream = load_stream(config)
        seed_everything(config.seed, "model")
        check = partial(check_contract, config=config, stream=self.stream)
        self.model = build_model(config, self.stream, check=check)
        if HEADS[config.model.head].foreign:
            check_head(unwrap(self.model), config.model.head, self.stream)
        if config.tracking.enabled:
            check_store(config, self.name, self.console)

    def _build(self, begun: Begun | None) -> None:
        """Build the strategy with all that watches it, and put it where a checkpoint was taken, if there is one.

        Raises:
            UserError: the checkpoint does not fit this run, or there is a part of which none can be written.
        """
        from cl_ovq.evaluation.anytime import AnytimeEvaluation
        from cl_ovq.evaluation.dictionaries import DictionaryRecorder
        from cl_ovq.evaluation.logger import evaluator
        from cl_ovq.evaluation.matrix import MatrixRecorder
        from cl_ovq.evaluation.slot_statistics import SlotStatisticsRecorder
        from cl_ovq.evaluation.training import TrainingLoss
        from cl_ovq.runs.checkpoints.plugin import Checkpoints
        from cl_ovq.runs.checkpoints.state import RunState
        from cl_ovq.training.progress import ExperienceProgress

        config, stream, console = self.config, self.stream, self.console
        earlier: dict[str, Any] = begun.run["about"] if begun else {"train_seconds": 0.0, "wall_seconds": 0.0}
        self.about = {
            "config": to_dict(config),
            "imports": with_digests(earlier.get("imports", {})),
            "train_seconds": earlier["train_seconds"],
            "wall_seconds": 0.0,
        }
        self.started = time.perf_counter() - earlier["wall_seconds"]
        reset_peak_memory(self.device)
        seed_everything(config.seed, "training")
        self.recorders = Recorders(
            MatrixRecorder(stream.classes_per_experience, stream.kind),
            DictionaryRecorder(config.evaluation.dictionary_every),
            SlotStatisticsRecorder(),
        )
        learned = slice(config.evaluation.stop_after)
        train = list(stream.benchmark.streams["train"])[learned]
        self.test = stream.benchmark.streams[config.evaluation.split][learned]
        self.experiences, self._schedule = len(train), schedule(config, train)

        self._bar = ExperienceProgress(console, len(self._schedule))
        # The tracker is opened when nothing can be wrong any more.
        metrics = evaluator(*self.recorders, TrainingLoss(), log=lambda values, step: self.tracker.log(values, step))
        self.strategy = build_strategy(config, stream, self.model, self.device, evaluator=metrics, plugins=[self._bar])
        state = RunState(self.strategy, stream, self.recorders)
        if config.checkpoint.enabled:
            state.check_owners()
        self.checkpoints = Checkpoints(
            state,
            self.directory if config.checkpoint.enabled else None,
            config.checkpoint.every_steps,
            self.about,
            self.started,
            tell=lambda line: warn(console, "checkpoint", line),
            settle=lambda: self.tracker.flush(),
        )
        if config.evaluation.every_steps is not None:
            every = config.evaluation.every_steps
            self.strategy.plugins.append(AnytimeEvaluation(self.recorders.matrix, self.test, every))
        self.strategy.plugins.append(self.checkpoints)

        self.resumed = begun is not None
        if begun is not None:
            self.checkpoints.resume(begun, len(self._schedule))

    def _begin(self, callbacks: Sequence[Callback]) -> None:
        """Say what begins, to the person and to the callbacks."""
        stream, console = self.stream, self.console
        console.print(f"[bold]{escape(self.name)}[/] on {stream.name}, {stream.scenario.replace('_', '-')}")
        tracking = [Tracking()] if self.config.tracking.enabled else []
        self.callbacks = Callbacks([Progress(self._bar), *tracking, Checkpointing(self.checkpoints), *callbacks])
        self.callbacks.run_begin(self)
        if self.resumed and self.earlier is None:
            line = f"resumed after {self.checkpoints.done} of {len(self._schedule)} experiences"
            console.print(line, highlight=False)

    def remaining(self) -> list[tuple[int, Any]]:
        """Return the part of the strategy's schedule that is still to come, see `schedule`."""
        return self._schedule[self.checkpoints.done :]

    def evaluate(self, row: int) -> None:
        """Fill a row of the results matrix; after training, `metrics` are then those of the experiences so far.

        A row that `evaluation.rows` leaves out stays empty, and so do the metrics after it.

        Raises:
            DivergedError: a loss is not finite.
        """
        self.metrics = {}
        asked = self.config.evaluation.rows
        if asked and row not in (*asked, self.experiences):
            return
        self.recorders.matrix.row = row
        with unchanged_randomness():  # what is evaluated must not change how training goes on
            self.strategy.eval(self.test)
        if row == 0:
            return
        objective = OBJECTIVES[self.stream.kind]
        self.metrics = stream_metrics(self.recorders.so_far(row), objective)
        if objective.quantity == "accuracy":
            whole = self.recorders.so_far(self.config.evaluation.stop_after)["accuracy"]
            self.metrics["all_task_accuracy"] = all_task_accuracy(whole)[row - 1]

    @contextmanager
    def until_divergence(self) -> Iterator[None]:
        """Train in the `with` block, which is left without an error when training diverges; say so in a line."""
        from cl_ovq.training.divergence import DivergedError

        try:
            yield
        except DivergedError as error:
            self.diverged = error
            if self.strategy.is_training:  # cut short before it could count its seconds
                self.checkpoints.after_training(self.strategy)
        except StreamDataError as error:  # of data that is read as it is needed
            raise UserError(f"stream: {error}") from error
        finally:
            self.callbacks.training_end(self)
        if self.diverged is not None:
            line = f"[bold red]{escape(str(self.diverged))}[/]: the run ends here"
            self.console.print(line, highlight=False, soft_wrap=True)
        self.model.eval()
