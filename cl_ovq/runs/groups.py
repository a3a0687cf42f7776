"""What can be compared: a run, the seeds of one configuration, by directory or by its name in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_ovq.config.identity import differences, identity
from cl_ovq.errors import UserError
from cl_ovq.paths import RESULTS, is_there
from cl_ovq.runs.result import Result
from cl_ovq.runs.validate import read_json
from streams.files import near

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, by seed.

    Attributes:
        name: shown in tables; the runs' name without its seed, made unique by `load_groups`.
        runs: result by seed.
    """

    name: str
    runs: dict[int, Result]

    @property
    def sound(self) -> dict[int, Result]:
        """The runs that did not diverge: only these are compared."""
        return {seed: run for seed, run in self.runs.items() if run.diverged is None}

    @property
    def count(self) -> str:
        """How many runs there are, in words."""
        seeds = f"{len(self.runs)} seed{'' if len(self.runs) == 1 else 's'}"
        lost = len(self.runs) - len(self.sound)
        return f"{seeds}, {lost} diverged" if lost else seeds

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the first run."""
        return next(iter(self.runs.values())).config


def load_groups(names: Sequence[str], uri: str | None = None) -> list[Group]:
    """Load what is to be compared; the same thing may be named twice.

    Args:
        names: see `load_group`.
        uri: MLflow's store, for names that are no path.

    Raises:
        UserError: see `load_group`; or the groups were evaluated on unlike streams.
    """
    return comparable([load_group(name, uri) for name in names], names)


def comparable(groups: Sequence[Group], names: Sequence[str]) -> list[Group]:
    """Return groups under names of their own.

    Args:
        groups: to be compared.
        names: what each is called where another one has the same name.

    Raises:
        UserError: the groups were evaluated on unlike streams.
    """
    streams = {_stream(group) for group in groups}
    if len(streams) > 1:
        raise UserError(f"these runs are on different streams and cannot be compared: {'; '.join(sorted(streams))}")
    labels = [group.name for group in groups]
    return [
        Group(f"{group.name} ({Path(given).name})" if labels.count(group.name) > 1 else group.name, group.runs)
        for group, given in zip(groups, names, strict=True)
    ]


def load_group(name: str, uri: str | None = None) -> Group:
    """Load the runs of one configuration.

    Args:
        name: a file like `results.json` or `seeds.json`, a directory that holds them (of a run, of several seeds, of a
            row of a study), or a run's id or name in MLflow (of a run, or of the parent of several seeds).
        uri: MLflow's store; the default one if None.

    Raises:
        UserError: there is nothing of that name, or it holds more than one configuration.
    """
    path = Path(name)
    return group_of(_from_path(path) if is_there(path) else _from_mlflow(name, uri), name)


def group_of(results: Sequence[Result], name: str) -> Group:
    """Return runs whose training differs by nothing but their seeds as a group.

    They may differ in what was evaluated after it; of two runs of one seed the one that has more of that is taken.

    Args:
        results: of the runs.
        name: of what holds them, for the message.

    Raises:
        UserError: they differ in more.
    """
    runs: dict[int, Result] = {}
    for result in results:
        differing = sorted(differences(*map(_deciding, (results[0], result))))
        if differing:
            raise UserError(
                f"{name} contains runs with different configurations (they differ in {', '.join(differing[:3])}): "
                "choose one of its subdirectories"
            )
        seed = result.config["seed"]
        runs[seed] = max(runs.get(seed, result), result, key=lambda run: len(run.lengths) + len(run.capacities))
    label = results[0].run_name.rsplit(" seed ", 1)[0]
    return Group(label, dict(sorted(runs.items())))


def _from_path(path: Path) -> list[Result]:
    if path.is_file():
        return _from_seeds(path) or [Result.read(path)]
    if (path / RESULTS).exists():
        return [Result.read(path)]
    found = [Result.read(file) for file in sorted(path.rglob(RESULTS))]
    # A row of a study keeps the runs that chose its hyper-parameters beside those that are reported.
    reported = [result for result in found if result.config["evaluation"]["split"] == "test"]
    if not found:
        raise UserError(f"{path} contains no results ({RESULTS})")
    return reported or found


def _from_seeds(path: Path) -> list[Result]:
    """Return the runs in a file that holds several seeds, as `seeds.json` does; none where it is of another kind."""
    content = read_json(path, "the results of a run")
    if not isinstance(content, dict) or "runs" not in content:
        return []
    if not isinstance(content["runs"], list):
        raise UserError(f"{path} does not contain the results of several seeds")
    return [Result.of(run, path) for run in content["runs"]]


def _from_mlflow(name: str, uri: str | None) -> list[Result]:
    from cl_ovq.runs.find import find_run
    from cl_ovq.tracking.export import open_existing

    try:
        client = open_existing(uri)
        run = find_run(client, name)
    except UserError as error:
        hint = near(Path(name)) or f"; as a run name: {error}"
        raise UserError(f"no file or directory '{name}'{hint}") from error
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and attributes.status = 'FINISHED'"
    )
    return [_download(client, child) for child in (children or [run])]


def _download(client: MlflowClient, run: Run) -> Result:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Result.read(Path(client.download_artifacts(run.info.run_id, RESULTS, folder)))
        except (MlflowException, OSError) as error:
            raise UserError(f"run '{run.info.run_name}' ({run.info.status}) has no {RESULTS} in MLflow") from error


def _deciding(result: Result) -> dict[str, Any]:
    """Return what decides training but for the seed."""
    return {key: value for key, value in identity(result.config).training.items() if key != "seed"}


def _stream(group: Group) -> str:
    stream = group.config["stream"]
    parts = [
        stream["name"],
        stream.get("source", ""),
        stream.get("scenario", ""),
        f"{len(next(iter(group.runs.values())).matrix[0])} experiences",
    ]
    return ", ".join([*filter(None, parts), f"{group.config['evaluation']['split']} split"])
