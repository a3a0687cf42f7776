"""One experiment over several seeds: each a run of its own, and their mean, spread and confidence interval."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cl_ovq.config import ExperimentConfig
from cl_ovq.config.custom import LENT
from cl_ovq.errors import UnwrittenError, UserError
from cl_ovq.evaluation.aggregates import Aggregate, aggregate
from cl_ovq.paths import write_atomically
from cl_ovq.runs.checking import check_config, find_device
from cl_ovq.runs.folder import SEEDS as FILE_NAME
from cl_ovq.runs.folder import clear, for_seed, run_folder, seeds_of
from cl_ovq.runs.pool import Make, run_many, run_one
from cl_ovq.runs.provenance import warn_of_changed_imports
from cl_ovq.runs.result import Result, common_labels, summary_metrics, undefined_metrics
from cl_ovq.runs.reuse import FinishedRuns
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.run_logging import check_store, open_tracker
from cl_ovq.runs.setup import describe, load_stream
from cl_ovq.runs.summary import save_figure
from cl_ovq.tracking import RunKey, Tracker, warm_up
from cl_ovq.tracking.notes import seeds_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class SeedsResult:
    """The runs of one configuration over several seeds.

    Attributes:
        metrics: aggregates by the name of the metric, over the seeds that did not diverge.
        runs: the result of each seed.
        diverged: the seeds that did.
    """

    metrics: dict[str, Aggregate]
    runs: list[Result]
    diverged: list[int]

    def to_pandas(self) -> DataFrame:
        """Return the metrics as a data frame, a row per seed."""
        import pandas

        return pandas.concat([run.to_pandas() for run in self.runs])

    def to_json(self) -> str:
        """Return the aggregates and all runs as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def run_seeds(
    config: ExperimentConfig, console: Console, *, jobs: int = 1, resume: bool = False, overwrite: bool = False
) -> SeedsResult:
    """Run `config.seeds` seeds, from `config.seed` on.

    Each run has a directory `seed_<n>` under `output_dir`, or under a new one, and the whole is `seeds.json` there. In
    MLflow the runs are children of one that carries the aggregates.

    Args:
        config: a loaded configuration.
        console: where progress is drawn.
        jobs: seeds at a time; more than one in processes of their own, which draw no progress.
        resume: whether seeds that are finished are read, and others go on.
        overwrite: whether to take the place of the runs in `output_dir`.

    Raises:
        UserError: see `run_experiment`; nothing has been run then. Or a model or stream that was given as an object is
            to be used in other processes.
    """
    for section in LENT if jobs > 1 else ():
        raise UserError(f"jobs: the {section} was passed as an object, which exists only in this process: use jobs=1")
    if resume and config.output_dir is None:
        raise UserError("--resume needs output_dir=DIR, the directory of the runs to resume")
    check_config(config)
    seeds = seeds_of(config)
    name = f"{describe(config).removesuffix(f' seed {config.seed}')} seeds {seeds[0]}-{seeds[-1]}"
    with run_folder(config, name, resume=resume, overwrite=overwrite) as directory:
        load_stream(config)  # missing data is said before anything is written
        if config.tracking.enabled:
            warm_up()
            check_store(config, name, console)
        if overwrite:
            clear(directory)

        with open_tracker(config, directory, name, find_device(config.device), resume=resume) as parent:
            parent.tag({"seed": f"{seeds[0]}-{seeds[-1]}", "seeds": len(seeds)})
            runs = {seed: for_seed(config, seed, directory) for seed in seeds}
            # A progress bar for each; but other processes have no part in the console.
            make: Make = partial(run_experiment, console=console, parent=parent, resume=resume, overwrite=overwrite)
            if jobs > 1:
                begun = FinishedRuns(directory.iterdir() if resume else ())
                warn_of_changed_imports(console, begun.imports(), f"runs in {directory}")
                key = RunKey(parent.key) if config.tracking.enabled else None
                make = partial(run_one, parent=key, resume=resume, overwrite=overwrite)

            def ended(seed: int, error: BaseException | None) -> None:
                if error is not None:
                    raise error
                if jobs > 1:
                    console.print(f"seed {seed} finished", highlight=False)

            run_many(runs.items, ended, jobs=jobs, make=make)
            whole = _whole([Result.read(Path(str(run.output_dir))) for run in runs.values()])
            try:
                write_atomically(directory / FILE_NAME, whole.to_json() + "\n")
            except UnwrittenError as error:
                way = "free some space and rerun with --resume"
                raise UnwrittenError(f"{error}: {way}", whole.to_json()) from error
            _log_aggregates(whole, parent)
            parent.tag({"mlflow.note.content": seeds_note(whole.metrics, whole.runs)})
            if whole.diverged:
                parent.tag({"diverged": f"seeds {', '.join(map(str, whole.diverged))}"})
            parent.log_file(directory / FILE_NAME)
            picture = directory / f"matrix.{config.figure_format}"
            if config.figures and save_figure(partial(_figure, whole), picture, console):
                parent.log_file(picture)
        return whole


def _whole(results: list[Result]) -> SeedsResult:
    """Aggregate the metrics of runs over seeds."""
    numbers = [summary_metrics(result) for result in results if result.diverged is None]
    names = dict.fromkeys(name for found in numbers for name in found)
    metrics = {name: aggregate([found[name] for found in numbers if name in found]) for name in names}
    return SeedsResult(metrics, results, [result.config["seed"] for result in results if result.diverged])


def _figure(whole: SeedsResult) -> Figure:
    """Draw the mean results matrix of the seeds that did not diverge, of all where all did."""
    from cl_ovq.evaluation.figures import mean_matrix_figure

    runs = [run for run in whole.runs if run.diverged is None] or whole.runs
    title = f"{runs[0].run_name.rsplit(' seed ', 1)[0]}, {len(runs)} seeds"
    matrices = [run.to_numpy() for run in runs]
    return mean_matrix_figure(matrices, title, runs[0].quantity, common_labels(runs))


def _log_aggregates(whole: SeedsResult, parent: Tracker) -> None:
    """Log every mean under the name that a seed's own metric has, at the same step, and its spread beside it."""
    first = whole.runs[0]
    experiences, steps = len(first.matrix) - 1, first.provenance["train_steps"]
    parent.log({name: math.nan for name in undefined_metrics(first) if name not in whole.metrics}, step=experiences)
    for name, found in whole.metrics.items():
        values = {name: found.mean}
        if found.standard_deviation is not None and found.interval is not None:
            values |= {f"{name}/standard_deviation": found.standard_deviation, f"{name}/interval": found.interval}
        parent.log(values, step=experiences if name in first.metrics else steps)
