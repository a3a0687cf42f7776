"""One experiment: run it, look at it, evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_ovq.cli.arguments import (
    AllowEnv,
    Config,
    Imports,
    Jobs,
    Json,
    Overrides,
    picture_file,
    writable_file,
)
from cl_ovq.errors import UserError, unknown

commands = typer.Typer()


@commands.command(rich_help_panel="One experiment")
def run(
    config: Config,
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print only the result, as one JSON object.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the checkpoint in output_dir, if there is one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in output_dir, if there is one.")
    ] = False,
    jobs: Jobs = 1,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Run an experiment: train on its stream, fill the results matrix, and log everything to MLflow."""
    from cl_ovq.config import load_config
    from cl_ovq.report.runs import generalization_tables, leave_if_diverged, matrix_table, seeds_table, summary_table
    from cl_ovq.runs.run import run_experiment
    from cl_ovq.runs.seeds import run_seeds

    loaded, console = load_config(config, overrides or (), allow_env=allow_env), Console()
    if loaded.seeds == 1 and jobs > 1:
        raise UserError("--jobs: with seeds=1 there is only one run: remove --jobs, or set e.g. seeds=5")
    if loaded.seeds > 1:
        over_seeds = run_seeds(loaded, Console(stderr=True), jobs=jobs, resume=resume, overwrite=overwrite)
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
        for table in generalization_tables(result.run_name, result.lengths, result.capacities):
            console.print(table)
        console.print(f"results: {result.output_dir}", soft_wrap=True, markup=False)
    leave_if_diverged([result])


@commands.command(rich_help_panel="Data and weights")
def pretrain(
    config: Config,
    output: Annotated[
        Path, typer.Option(help="Output file for the weights, for learner.path.", callback=writable_file)
    ],
    overrides: Overrides = None,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Pretrain the weights of a learner (strategy.name=in_context) for other runs."""
    from cl_ovq.config import load_config
    from cl_ovq.in_context import ReadOptions, build_learner, deciding, write_weights
    from cl_ovq.runs.checking import check_config
    from cl_ovq.runs.setup import take_threads
    from streams import STREAMS

    loaded = load_config(config, overrides or (), allow_env=allow_env)
    check_config(loaded)
    take_threads(loaded)
    options = loaded.learner
    if options is None:
        raise UserError(f"pretrain: strategy.name={loaded.strategy.name} has no learner: use strategy.name=in_context")
    if isinstance(options, ReadOptions):
        raise UserError(
            f"pretrain: learner.weights={options.weights} loads existing weights: use "
            "learner.weights=gaussian_classes, learner.weights=features or learner.weights=sine"
        )
    seed = loaded.seed if options.weights_seed is None else options.weights_seed
    learner = build_learner(options, loaded.dictionary, seed, STREAMS[loaded.stream.name].kind)
    write_weights(learner, output, deciding(options, loaded.dictionary), seed)
    Console().print(f"weights: {output}", soft_wrap=True, markup=False)


@commands.command(rich_help_panel="Data and weights")
def features(
    config: Config,
    output: Annotated[Path, typer.Option(help="Output file (.npz).", callback=writable_file)],
    overrides: Overrides = None,
    allow_env: AllowEnv = False,
    imports: Imports = None,
) -> None:
    """Write the encoded samples of an experiment's stream, for the stream `features` and learner.data."""
    from cl_ovq.config import load_config
    from cl_ovq.runs.checking import check_config
    from cl_ovq.runs.hand_over import write_features
    from cl_ovq.runs.setup import take_threads

    loaded = load_config(config, overrides or (), allow_env=allow_env)
    check_config(loaded)
    take_threads(loaded)
    samples, size = write_features(loaded, output)
    Console().print(f"written: {output}, {samples:,} samples of {size} features", soft_wrap=True, markup=False)


@commands.command(rich_help_panel="One experiment")
def demo() -> None:
    """Learn digits, two classes at a time, with three methods: gradients and replay, counting, and a state alone."""
    from cl_ovq.config import load_config
    from cl_ovq.report.runs import matrix_table, summary_table
    from cl_ovq.runs.run import run_experiment

    console = Console()
    results = []
    for name in ("quickstart", "split_digits_memory", "in_context_digits"):
        result = run_experiment(load_config(name), Console(stderr=True))
        console.print(matrix_table(result))
        results.append(result)
    console.print(summary_table(results))
    for result in results:
        console.print(f"results: {result.output_dir}", soft_wrap=True, markup=False)
    console.print("\nCompare the runs in MLflow:  [bold]make ui[/]")


@commands.command(rich_help_panel="One experiment")
def evaluate(
    run: Annotated[str, typer.Argument(help="Directory or checkpoint of a run, or a run in MLflow.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Overrides, e.g. stream.name=NAME or evaluation.lengths=[...].",
            show_default=False,
        ),
    ] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow store, for runs given by id or name.")] = None,
    json: Json = False,
    imports: Imports = None,
) -> None:
    """Evaluate a finished run, without training, on its own or another stream: forgetting, transfer, linear probes."""
    from cl_ovq.report.runs import generalization_tables
    from cl_ovq.runs.reevaluate import evaluate_finished

    found = evaluate_finished(run, overrides or (), uri)
    if json:
        print(found.to_json())
    else:
        for table in (found.to_table(), *generalization_tables(found.source, found.lengths, found.capacities)):
            Console().print(table)


@commands.command(rich_help_panel="Reference")
def show(config: Config, overrides: Overrides = None, allow_env: AllowEnv = False, imports: Imports = None) -> None:
    """Print the resolved configuration of an experiment."""
    from omegaconf import OmegaConf

    from cl_ovq.config import load_config, to_dict
    from cl_ovq.runs.checking import check_config
    from cl_ovq.runs.folder import check_output_dir

    loaded = load_config(config, overrides or (), allow_env=allow_env)
    check_config(loaded)
    check_output_dir(loaded)
    print(OmegaConf.to_yaml(OmegaConf.create(to_dict(loaded))), end="")


@commands.command("show-stream", rich_help_panel="Reference")
def show_stream(
    name: Annotated[str, typer.Argument(help="Stream name from `cl-ovq list streams`.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the stream, and seed=N.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Output file for the contact sheet (default: runs/streams/NAME.png).", callback=picture_file),
    ] = None,
    imports: Imports = None,
) -> None:
    """Show a stream: shapes, sizes, class balance, and an example or a contact sheet."""
    from cl_ovq.cli.preview import print_stream
    from cl_ovq.config import load_stream_config
    from cl_ovq.runs.setup import load_stream, quiet

    quiet()
    config = load_stream_config(name, overrides or ())
    print_stream(load_stream(config), Console(), output or Path("runs", "streams", f"{name}.png"))


@commands.command("list", rich_help_panel="Reference")
def list_names(
    kind: Annotated[
        str | None, typer.Argument(help="Kind to list: streams, models, mixers, strategies, experiments, ...")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Name whose options to list.")] = None,
    imports: Imports = None,
) -> None:
    """List the parts that a configuration can name, or one part's options (`cl-ovq list strategies der`)."""
    from cl_ovq.cli.listing import KINDS, PARTS, options_of
    from cl_ovq.report.table import Column, Table

    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    console = Console()
    if kind is not None and name is not None:
        options, what = options_of(kind, name), f"{name}: {PARTS[kind][name].summary}"
        table = Table("key", Column("meaning", right=False), title=what)
        for key, meaning in options.items():
            table.add(key, meaning)
        console.print(table if options else f"{what}; it has no options")
        return
    if kind is not None:
        table = Table("name", Column("meaning", right=False), title=kind)
        for part, summary in KINDS[kind]().items():
            table.add(part, summary)
        console.print(table)
        return
    table = Table("kind", Column("names", right=False))
    for listed, parts in KINDS.items():
        names = list(parts())
        table.add(listed, f"{len(names)} keys: see `cl-ovq list keys`" if listed == "keys" else ", ".join(names))
    console.print(table)
    console.print("`cl-ovq list KIND` describes them; `cl-ovq list KIND NAME` shows the options of one.")
