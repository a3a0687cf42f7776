"""What runs have found: audited, compared, drawn, in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_ovq.cli.arguments import (
    AllowEnv,
    FigureFormat,
    Imports,
    Json,
    Overrides,
    TableFile,
    picture_file,
    writable_file,
    writable_folder,
)
from cl_ovq.errors import UserError

commands = typer.Typer()


@commands.command(rich_help_panel="Results")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Two or more runs: directory or file of a run or of several seeds, or a run in MLflow."),
    ],
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML page with figures.", callback=writable_file)
    ] = None,
    output: TableFile = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Output directory for the page's figures as separate files.", callback=writable_folder),
    ] = None,
    figure_format: FigureFormat = None,
    uri: Annotated[str | None, typer.Option(help="MLflow store, for runs given by id or name.")] = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Compare runs with the first one: differences over seeds, confidence intervals and significance tests."""
    from cl_ovq.comparison import compare as compare_groups
    from cl_ovq.comparison import load_groups
    from cl_ovq.comparison.cautions import cautions
    from cl_ovq.comparison.pages import to_json, to_table, write_figures, write_page
    from cl_ovq.paths import write_atomically
    from cl_ovq.runs.summary import warn

    if len(runs) < 2:
        raise UserError("compare needs at least two runs")
    if figure_format is not None and figures is None:
        raise UserError("--format requires --figures FOLDER: figures in an HTML page are embedded")
    compared = compare_groups(load_groups(runs, uri))
    for line in cautions(compared.groups):
        warn(Console(stderr=True), "compare", line)
    table = to_table(compared)
    if html is not None:
        write_page(compared, html)
    if output is not None:
        write_atomically(output, table.rendered(output.suffix))
    drawn = [] if figures is None else write_figures(compared, figures, figure_format or "png")
    if json:
        print(to_json(compared))
        return
    Console().print(table)
    for path in filter(None, (html, output, *drawn)):
        Console().print(f"written: {path}", soft_wrap=True, markup=False)


@commands.command(rich_help_panel="Results")
def audit(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|CONFIG",
            help="Directory of a finished run, YAML file, or name of an experiment.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    experiences: Annotated[int, typer.Option(min=1, help="Number of experiences in audited runs.")] = 2,
    json: Json = False,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Audit an experiment: leaks of data and labels, frozen parts, seeds, bytes held."""
    from cl_ovq.runs.setup import quiet

    quiet()  # before Avalanche is imported
    from cl_ovq.audits import audit_config, audit_finished, finished_run
    from cl_ovq.config import load_config

    console = Console(stderr=True)
    if (directory := finished_run(run)) is not None:
        found = audit_finished(directory, overrides or (), console, experiences=experiences)
    else:
        loaded = load_config(run, overrides or (), allow_env=allow_env)
        found = audit_config(loaded, console, experiences=experiences)
    if json:
        print(found.to_json())
    else:
        Console().print(found.to_table())
    if not found.sound:
        raise typer.Exit(1)


@commands.command(rich_help_panel="Results")
def lengths(
    runs: Annotated[
        list[str], typer.Argument(help="Directory or file of a run or of several seeds, or a run in MLflow.")
    ],
    at: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Sequence length at which to evaluate the checkpoints now (default: show stored results)."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="With --at: total number of tokens per length.")] = 65_536,
    log_length_scaling: Annotated[
        bool,
        typer.Option(
            "--log-length-scaling", help="With --at: see evaluation.log_length_scaling in `cl-ovq list keys`."
        ),
    ] = False,
    output: Annotated[Path, typer.Option(help="Output file for the figure.", callback=picture_file)] = Path(
        "lengths.png"
    ),
    uri: Annotated[str | None, typer.Option(help="MLflow store, for runs given by id or name.")] = None,
    imports: Imports = None,
) -> None:
    """Compare runs at other sequence lengths: by length, distance, and bytes of state."""
    from cl_ovq.comparison import load_groups
    from cl_ovq.comparison.lengths import lengths_of
    from cl_ovq.config.check import checked_values
    from cl_ovq.config.schema import EvaluationConfig
    from cl_ovq.evaluation.length_generalization import lengths_figure, mean_records
    from cl_ovq.report.runs import lengths_table

    if log_length_scaling and not at:
        raise UserError("--log-length-scaling requires --at: stored results cannot be changed")
    checked_values("", EvaluationConfig, {"lengths": list(at or ()), "length_tokens": tokens})
    found = lengths_of(
        load_groups(runs, uri), at or (), tokens, Console(stderr=True), log_length_scaling=log_length_scaling
    )
    Console().print(lengths_table(found))
    figure = lengths_figure({name: mean_records(records) for name, records in found.items()})
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=120)
    except OSError as error:
        raise UserError(f"output: {output} cannot be written: {error.strerror}") from error
    Console().print(f"figure: {output}", soft_wrap=True, markup=False)


@commands.command(rich_help_panel="Data and weights")
def weights(
    run: Annotated[str, typer.Argument(help="Directory or checkpoint of a run, or a run in MLflow.")],
    output: Annotated[Path, typer.Option(help="Output file (.pth or .pt).", callback=writable_file)],
    imports: Imports = None,
) -> None:
    """Export the weights of a run's trained model, e.g. for encoder.weights in other runs."""
    from cl_ovq.runs.hand_over import write_model_weights

    numbers = write_model_weights(run, output)
    Console().print(f"written: {output}, {numbers:,} weights", soft_wrap=True, markup=False)


@commands.command(rich_help_panel="Results")
def ui(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs to compare, by id, name or directory; a sweep stands for its trials (default: the latest runs).",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port; if in use, the next free one.")] = 5000,
    uri: Annotated[str | None, typer.Option(help="MLflow store (default: the one under runs/).")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any other than 127.0.0.1 turns on MLflow's authentication.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser if there is a desktop.")] = True,
) -> None:
    """Start MLflow's user interface on this machine, and print the URL that compares runs."""
    from cl_ovq.cli.ui import serve

    serve(runs or (), port=port, uri=uri, host=host, browser=browser)


@commands.command(rich_help_panel="Results")
def sync(
    directory: Annotated[
        Path | None, typer.Argument(help="Directory of a run, or one with several runs (default: runs/).")
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(help="Store to send all runs to (default: send only runs that belong to the store under runs/)."),
    ] = None,
) -> None:
    """Send to MLflow what runs could not send themselves, and mark killed runs. Safe to repeat."""
    from cl_ovq.tracking import RUNS
    from cl_ovq.tracking.sync import sync as sync_runs

    console = Console()
    found = sync_runs(directory or RUNS, uri, anyway=uri is not None)
    for run in found:
        console.print(run.line(), soft_wrap=True, highlight=False, markup=False)
    if not found:
        console.print("nothing to send")
    if any(run.outcome in ("kept", "malformed") for run in found):
        raise typer.Exit(1)


@commands.command(rich_help_panel="Results")
def export(
    experiment: Annotated[str, typer.Argument(help="MLflow experiment, by name or id.")],
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Write an HTML page with a sortable table.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Output file (default: standard output, except for Parquet).", callback=writable_file),
    ] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow store (default: the one under runs/).")] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Include killed and unfinished runs, and parent runs."),
    ] = False,
) -> None:
    """Export an experiment as a table with one row per run: tags, parameters and metrics."""
    from cl_ovq.tracking.export import export_experiment

    formats = [name for name, chosen in {"csv": csv, "parquet": parquet, "html": html}.items() if chosen]
    if len(formats) != 1:
        raise UserError("export: name one format: --csv, --parquet or --html")
    left_out = export_experiment(experiment, formats[0], output, uri, every=every)
    if said := ", ".join(f"{count} {why}" for why, count in left_out.items() if count):
        Console(stderr=True).print(f"left out: {said} (--all)", soft_wrap=True, highlight=False, markup=False)
