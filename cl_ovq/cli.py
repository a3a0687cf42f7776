"""The command line. Everything heavy is imported by the command that needs it, so that `--help` answers at once."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from cl_ovq.arguments import (
    AllowEnv,
    Config,
    Imports,
    Json,
    Overrides,
    TableFile,
    picture_file,
    writable_file,
    writable_folder,
)
from cl_ovq.benchmarks.commands import bench
from cl_ovq.errors import UnwrittenError, UserError, unknown
from cl_ovq.paths import safe_name

app = typer.Typer(
    name="cl-ovq",
    help="Continual-learning experiments with OVQ models whose dictionaries persist across tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench, name="bench")


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in output_dir, if there is one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that output_dir holds, if there is one.")
    ] = False,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Run an experiment: train over its stream, fill the results matrix, keep everything in MLflow."""
    from cl_ovq.config import load_config
    from cl_ovq.report.runs import beside_tables, leave_if_diverged, matrix_table, seeds_table, summary_table
    from cl_ovq.runs.run import run_experiment
    from cl_ovq.seeds import run_seeds

    loaded, console = load_config(config, overrides or (), allow_env=allow_env), Console()
    if loaded.seeds > 1:
        over_seeds = run_seeds(loaded, Console(stderr=True), resume=resume, overwrite=overwrite)
        if json:
            print(over_seeds.to_json())
        else:
            console.print(seeds_table(over_seeds.metrics, over_seeds.runs))
            for result in over_seeds.runs:
                console.print(f"results: {result.output_dir}", soft_wrap=True, markup=False)
        leave_if_diverged(over_seeds.runs)
        return
    result = run_experiment(loaded, Console(stderr=True), resume=resume, overwrite=overwrite)
    if json:
        print(result.to_json())
    else:
        console.print(matrix_table(result))
        console.print(summary_table([result]))
        for table in beside_tables(result.run_name, result.lengths, result.capacities):
            console.print(table)
        console.print(f"results: {result.output_dir}", soft_wrap=True, markup=False)
    leave_if_diverged([result])


@app.command()
def study(
    file: Annotated[str, typer.Argument(help="A YAML file, or the name of one under experiments/studies/.")],
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Label of rows to run, e.g. of one task and two models; all if not given.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Holds the runs; those found there are not run again. runs/studies/NAME if not given.",
            callback=writable_folder,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for NAME.json, .md, .tex, .csv and .png; the runs' if not given.", callback=writable_folder
        ),
    ] = None,
    json: Json = False,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Run a grid of experiments over seeds, tuned on validation data, and make one table; what is done is skipped."""
    from cl_ovq import studies
    from cl_ovq.report.runs import leave_if_diverged
    from cl_ovq.tracking import RUNS

    loaded = studies.only(studies.load_study(file, overrides or (), allow_env=allow_env), only or ())
    console = Console()
    home = directory or RUNS / "studies" / safe_name(loaded.name)
    result = studies.run_study(loaded, home, Console(stderr=True), jobs=jobs)
    written = result.write(output or home)
    if json:
        print(result.to_json())
    else:
        console.print(result.to_table())
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)
    if result.failed:
        raise typer.Exit(1)
    leave_if_diverged(run for row in result.rows for run in row.runs)


@app.command()
def published(
    names: Annotated[list[str] | None, typer.Argument(help="Rows under experiments/published/; all if none.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Holds the runs; those found there are not run again. runs/published if not given.",
            callback=writable_folder,
        ),
    ] = None,
    output: TableFile = None,
) -> None:
    """Measure published numbers, and say which are reproduced: too good fails as well as too bad (exit code 1)."""
    from cl_ovq.results import write_atomically
    from cl_ovq.studies.published import load_published, reproduce, to_table
    from cl_ovq.tracking import RUNS

    home, said = directory or RUNS / "published", Console(stderr=True)
    found = reproduce(load_published(names or ()), seeds, home, said, jobs=jobs)
    Console().print(to_table(found))
    for reason in dict.fromkeys(one.missing for one in found if one.missing):
        said.print(f"not run: {reason}", soft_wrap=True, highlight=False, markup=False)
    if output is not None:
        write_atomically(output, to_table(found, sources=True).rendered(output.suffix))
    if any(one.verdict not in ("reproduced", "not run") for one in found):
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run's directory or checkpoint, or a run in MLflow.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="stream.name=NAME, evaluation.lengths=[...]", show_default=False),
    ] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow's store, for runs named by id or name.")] = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Evaluate a finished run on its own stream or another, without training: forgetting, transfer, linear probes."""
    from cl_ovq.finished import evaluate_finished
    from cl_ovq.report.runs import beside_tables

    found = evaluate_finished(run, overrides or (), uri)
    if json:
        print(found.to_json())
    else:
        for table in (found.to_table(), *beside_tables(found.source, found.lengths, found.capacities)):
            Console().print(table)


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Two or more: a run's or several seeds' directory or file, or a run in MLflow.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page, with figures.", callback=writable_file)
    ] = None,
    output: TableFile = None,
    uri: Annotated[str | None, typer.Option(help="MLflow's store, for runs named by id or name.")] = None,
    json: Json = False,
) -> None:
    """Compare runs with the first of them: differences over seeds, their intervals, and whether they hold."""
    from cl_ovq.comparison import compare as compare_groups
    from cl_ovq.comparison import load_groups
    from cl_ovq.comparison.pages import to_json, to_table, write_page
    from cl_ovq.results import write_atomically

    if len(runs) < 2:
        raise UserError("compare needs two runs or more")
    compared = compare_groups(load_groups(runs, uri))
    table = to_table(compared)
    if html is not None:
        write_page(compared, html)
    if output is not None:
        write_atomically(output, table.rendered(output.suffix))
    if json:
        print(to_json(compared))
        return
    Console().print(table)
    for path in filter(None, (html, output)):
        Console().print(f"written: {path}", soft_wrap=True, markup=False)


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="A YAML file, or the name of one under ray_configs/.")],
    overrides: Overrides = None,
    directory: Annotated[
        Path | None,
        typer.Option(help="Holds everything of the sweep; runs/sweeps/NAME if not given.", callback=writable_folder),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep of the directory; what has ended is not run again.")
    ] = False,
    json: Json = False,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Search for hyper-parameters with Ray Tune: on validation data; the best is then run once on fresh seeds."""
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
        if outcome.best is not None:
            console.print(f"again: {outcome.command(outcome.best)}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"results: {outcome.directory}", soft_wrap=True, markup=False)
    if outcome.interrupted == INTERRUPTED:
        raise typer.Exit(130)
    if outcome.best is None:
        raise typer.Exit(1)
    if outcome.diverged_tests():
        raise typer.Exit(3)


@app.command()
def show(config: Config, overrides: Overrides = None, allow_env: AllowEnv = False, imports: Imports = None) -> None:
    """Print the resolved configuration of an experiment."""
    from omegaconf import OmegaConf

    from cl_ovq.checking import check_config
    from cl_ovq.config import load_config, to_dict
    from cl_ovq.folder import check_output_dir

    loaded = load_config(config, overrides or (), allow_env=allow_env)
    check_config(loaded)
    check_output_dir(loaded)
    print(OmegaConf.to_yaml(OmegaConf.create(to_dict(loaded))), end="")


@app.command("show-stream")
def show_stream(
    name: Annotated[str, typer.Argument(help="A stream from `cl-ovq list streams`.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The stream's options, and seed=N.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File of the contact sheet; runs/streams/NAME.png if not given.", callback=picture_file),
    ] = None,
    imports: Imports = None,
) -> None:
    """Show a stream: shapes, sizes, balance of its targets, and an example or a contact sheet."""
    from cl_ovq.config import load_stream_config
    from cl_ovq.preview import print_stream
    from cl_ovq.runs.setup import load_stream, quiet

    quiet()
    config = load_stream_config(name, overrides or ())
    print_stream(load_stream(config), Console(), output or Path("runs", "streams", f"{name}.png"))


@app.command()
def lengths(
    runs: Annotated[list[str], typer.Argument(help="A run's or several seeds' directory or file, or a run in MLflow.")],
    at: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens at which the runs' checkpoints are evaluated now; as they were if not given."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="With --at: tokens of all sequences of a length.")] = 65_536,
    sharpen: Annotated[
        bool,
        typer.Option("--sharpen", help="With --at: see the key evaluation.log_length_scaling in `cl-ovq list keys`."),
    ] = False,
    output: Annotated[Path, typer.Option(help="File of the figure.", callback=picture_file)] = Path("lengths.png"),
    uri: Annotated[str | None, typer.Option(help="MLflow's store, for runs named by id or name.")] = None,
    imports: Imports = None,
) -> None:
    """Compare runs on sequences of other lengths: over length, over distance, and over the bytes of the state."""
    from cl_ovq.comparison import load_groups
    from cl_ovq.comparison.lengths import lengths_of
    from cl_ovq.config.check import checked_values
    from cl_ovq.config.schema import EvaluationConfig
    from cl_ovq.evaluation.lengths import lengths_figure, mean_records
    from cl_ovq.report.runs import lengths_table

    if sharpen and not at:
        raise UserError("--sharpen: needs --at: what runs measured is as it is")
    checked_values("", EvaluationConfig, {"lengths": list(at or ()), "length_tokens": tokens})
    found = lengths_of(load_groups(runs, uri), at or (), tokens, Console(stderr=True), sharpen=sharpen)
    Console().print(lengths_table(found))
    figure = lengths_figure({name: mean_records(records) for name, records in found.items()})
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=120)
    except OSError as error:
        raise UserError(f"output: {output} cannot be written: {error.strerror}") from error
    Console().print(f"figure: {output}", soft_wrap=True, markup=False)


@app.command("list")
def list_names(
    kind: Annotated[
        str | None, typer.Argument(help="streams, models, mixers, strategies, optimizers, experiments, ...")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="One of that kind: its options are listed.")] = None,
    imports: Imports = None,
) -> None:
    """List what a configuration can name, or the options of one part: `cl-ovq list strategies der`."""
    from cl_ovq.catalogue import KINDS, PARTS, options_of
    from cl_ovq.report.table import Column, Table

    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    console = Console()
    if kind is not None and name is not None:
        options, what = options_of(kind, name), f"{name}: {PARTS[kind][name].summary}"
        table = Table("key", Column("what it is", right=False), title=what)
        for key, meaning in options.items():
            table.add(key, meaning)
        console.print(table if options else f"{what}; it has no options of its own")
        return
    for listed in KINDS if kind is None else (kind,):
        table = Table("name", Column("what it is", right=False), title=listed)
        for part, summary in KINDS[listed]().items():
            table.add(part, summary)
        console.print(table)


@app.command()
def ui(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Runs to compare: ids, names or directories; the latest few if none.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(help="Port; the next free one is taken if it is in use.")] = 5000,
    uri: Annotated[str | None, typer.Option(help="Store; the one under runs/ if not given.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but 127.0.0.1 turns MLflow's passwords on.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Whether to open a browser, where there is a desktop.")] = True,
) -> None:
    """Open MLflow's user interface on this machine, and print the page that compares runs."""
    from cl_ovq.interface import serve

    serve(runs or (), port=port, uri=uri, host=host, browser=browser)


@app.command()
def sync(
    directory: Annotated[
        Path | None, typer.Argument(help="A run's directory, or one that holds such; runs/ if not given.")
    ] = None,
    uri: Annotated[
        str | None, typer.Option(help="Store for all of them; runs of the one under runs/ are sent if not given.")
    ] = None,
) -> None:
    """Send to MLflow what runs could not send themselves, and mark runs that were killed. Sending twice is harmless."""
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


@app.command()
def export(
    experiment: Annotated[str, typer.Argument(help="MLflow experiment, by name or id.")],
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Parquet.")] = False,
    html: Annotated[bool, typer.Option("--html", help="A page with a table that can be sorted.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="File; standard output if not given (not for Parquet).", callback=writable_file),
    ] = None,
    uri: Annotated[str | None, typer.Option(help="Store; the one under runs/ if not given.")] = None,
) -> None:
    """Write an experiment as a table: one row a run, with its tags, parameters and metrics."""
    from cl_ovq.tracking.export import export_experiment

    formats = [name for name, chosen in {"csv": csv, "parquet": parquet, "html": html}.items() if chosen]
    if len(formats) != 1:
        raise UserError("export: name one format: --csv, --parquet or --html")
    export_experiment(experiment, formats[0], output, uri)


@app.command()
def demo() -> None:
    """Run the quickstart three times: a dictionary for all tasks, one per sequence, and softmax attention."""
    from cl_ovq.config import load_config
    from cl_ovq.report.runs import matrix_table, summary_table
    from cl_ovq.runs.run import run_experiment

    variants: tuple[tuple[str, ...], ...] = ((), ("dictionary.scope=sequence",), ("model.mixer=softmax",))
    console = Console()
    results = []
    for overrides in variants:
        result = run_experiment(load_config("quickstart", overrides), Console(stderr=True))
        console.print(matrix_table(result))
        results.append(result)
    console.print(summary_table(results))
    for result in results:
        console.print(f"results: {result.output_dir}", soft_wrap=True, markup=False)
    console.print("\nCompare the runs in MLflow:  [bold]make ui[/]")


def main() -> None:
    """Run the command line.

    A mistake of the user is one line on standard error and exit code 2. So is a file that cannot be written, with exit
    code 1; what would be lost with it goes to standard output.
    """
    # A scheduler's or a container's end of time: leave as after Ctrl-C, so that what is open is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except UnwrittenError as error:
        if error.content is not None:
            print(error.content)
        _leave(str(error), 1)
    except UserError as error:
        _leave(str(error), 2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _leave(f"{error.filename or 'a file'} cannot be written: {error.strerror}", 1)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _leave(line: str, code: int) -> NoReturn:
    from rich.markup import escape

    Console(stderr=True, highlight=False).print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
    sys.exit(code)
