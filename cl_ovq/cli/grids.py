"""Many experiments: studies, sweeps, and the numbers that others have published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_ovq.cli.arguments import (
    AllowEnv,
    FigureFormat,
    Imports,
    Jobs,
    Json,
    Overrides,
    TableFile,
    writable_folder,
)
from cl_ovq.paths import safe_name

commands = typer.Typer()


@commands.command(rich_help_panel="Many experiments")
def study(
    file: Annotated[str, typer.Argument(help="YAML file, or name of a study.")],
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only rows with this label; repeatable (default: all rows).")
    ] = None,
    jobs: Jobs = 1,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the runs; finished ones there are reused (default: runs/studies/NAME).",
            callback=writable_folder,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Output directory for NAME.json, .md, .tex, .csv and figures (default: the study directory).",
            callback=writable_folder,
        ),
    ] = None,
    figure_format: FigureFormat = None,
    json: Json = False,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Run a grid of experiments over seeds, tuned on validation data, and tabulate it; finished runs are skipped."""
    from cl_ovq import studies
    from cl_ovq.report.runs import leave_if_diverged
    from cl_ovq.tracking import RUNS

    loaded = studies.only(studies.load_study(file, overrides or (), allow_env=allow_env), only or ())
    console = Console()
    home = directory or RUNS / "studies" / safe_name(loaded.name)
    result = studies.run_study(loaded, home, Console(stderr=True), jobs=jobs)
    written = result.write(output or home, figure_format or "png")
    if json:
        print(result.to_json())
    else:
        console.print(result.to_table())
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)
    if result.failed:
        raise typer.Exit(1)
    leave_if_diverged(run for row in result.rows for run in row.runs)


@commands.command(rich_help_panel="Many experiments")
def published(
    names: Annotated[list[str] | None, typer.Argument(help="Published numbers to reproduce (default: all).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per number.")] = 3,
    jobs: Jobs = 1,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the runs; finished ones there are reused (default: runs/published).",
            callback=writable_folder,
        ),
    ] = None,
    output: TableFile = None,
) -> None:
    """Reproduce published numbers. A result that is too good fails like one that is too bad (exit code 1).

    A row whose protocol differs from its source's is near or far, and never fails.
    """
    from cl_ovq.paths import write_atomically
    from cl_ovq.studies.published import FAILURES, load_published, reproduce, summary, to_table
    from cl_ovq.tracking import RUNS

    home, said = directory or RUNS / "published", Console(stderr=True)
    found = reproduce(load_published(names or ()), seeds, home, said, jobs=jobs)
    Console().print(to_table(found))
    for reason in dict.fromkeys(one.missing for one in found if one.missing):
        said.print(f"not run: {reason}", soft_wrap=True, highlight=False, markup=False)
    for one in found:
        if one.measured and one.target.differs:
            said.print(
                f"{one.target.name}: the protocol differs: {one.target.differs}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
    if not names:
        Console().print(summary(found))
    if output is not None:
        write_atomically(output, to_table(found, sources=True).rendered(output.suffix))
    if any(one.verdict in FAILURES for one in found):
        raise typer.Exit(1)


@commands.command(rich_help_panel="Many experiments")
def sweep(
    file: Annotated[str, typer.Argument(help="YAML file, or name of a sweep.")],
    overrides: Overrides = None,
    directory: Annotated[
        Path | None,
        typer.Option(help="Directory of the sweep (default: runs/sweeps/NAME).", callback=writable_folder),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the sweep in the directory; finished trials are not rerun.")
    ] = False,
    json: Json = False,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Search hyperparameters with Ray Tune on validation data, then run the best configuration on fresh seeds."""
    from cl_ovq.sweeps import load_sweep
    from cl_ovq.sweeps.run import INTERRUPTED, run_sweep
    from cl_ovq.tracking import RUNS

    loaded, console = load_sweep(file, overrides or (), allow_env=allow_env), Console()
    outcome = run_sweep(
        loaded, directory or RUNS / "sweeps" / safe_name(loaded.name), Console(stderr=True), resume=resume
    )
    if json:
        print(outcome.to_json())
    else:
        for table in outcome.tables():
            console.print(table)
        for line in outcome.doubts:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        if outcome.best is not None:
            console.print(f"again: {outcome.command(outcome.best)}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"results: {outcome.directory}", soft_wrap=True, markup=False)
    if outcome.interrupted == INTERRUPTED:
        raise typer.Exit(130)
    if outcome.best is None:
        raise typer.Exit(1)
    if outcome.diverged_tests():
        raise typer.Exit(3)
