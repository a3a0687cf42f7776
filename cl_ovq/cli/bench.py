"""The commands of `cl-ovq bench`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_ovq.cli.arguments import Config, Json, Overrides, writable_file, writable_folder
from cl_ovq.report.table import Number, Table

bench = typer.Typer(help="Measure speed and memory: ratios of things measured side by side.", no_args_is_help=True)


@bench.command("training")
def bench_training(
    config: Config = "quickstart",
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each loop.")] = 5,
    json: Json = False,
) -> None:
    """Samples per second of the training loop, of Avalanche's own data path, and of bare PyTorch."""
    from cl_ovq.benchmarks.training import measure_training
    from cl_ovq.config import load_config

    measured = measure_training(load_config(config, overrides or ()), rounds)
    if json:
        print(dumps(measured, indent=2))
        return
    table = Table("loop", "samples/s", "lowest", "highest", "share of bare PyTorch")
    for row in measured["rows"]:
        speeds = (Number(row[name], spec=".0f") for name in ("samples_per_second", "minimum", "maximum"))
        table.add(row["loop"], *speeds, Number(row["ratio"], spec=".2f"))
    console = Console()
    console.print(table)
    console.print(
        f"{measured['samples']} samples, median of {measured['rounds']} rounds, {measured['machine']['device']}; "
        f"metrics of dictionaries take {measured['dictionary_metrics']:.1%} of a step"
    )


@bench.command("tracking")
def bench_tracking(
    config: Config = "quickstart",
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs with and without, in turn.")] = 5,
    json: Json = False,
) -> None:
    """Time of a run with and without tracking in MLflow, in turn."""
    from cl_ovq.benchmarks.tracking import measure_tracking
    from cl_ovq.config import load_config

    measured = measure_tracking(load_config(config, overrides or ()), rounds)
    if json:
        print(dumps(measured, indent=2))
        return
    table = Table("run", "wall seconds", "lowest", "highest", "overhead", "processor seconds", "overhead")
    for row in measured["rows"]:
        wall = (Number(row["wall"][name], spec=".2f") for name in ("median", "minimum", "maximum"))
        overheads = (Number(row["overhead"][clock], spec="+.1%") for clock in ("wall", "processor"))
        table.add(row["mode"], *wall, next(overheads), Number(row["processor"]["median"], spec=".2f"), *overheads)
    console = Console()
    console.print(table)
    waited = f"{measured['waited']['median']:.2f} seconds, {measured['waited_share']:.1%}"
    console.print(f"in calls of tracking, the wait at the end included: {waited} of a run", highlight=False)


@bench.command("operator")
def bench_operator(
    tokens: Annotated[str, typer.Option(help="Numbers of tokens (T), forward.")] = "1024,4096,8192,16384,32768,65536",
    backward_tokens: Annotated[
        str, typer.Option(help="Numbers of tokens, forward and backward; empty for none.")
    ] = "1024,4096,8192,16384,32768",
    capacity: Annotated[str, typer.Option(help="Slots per head (N).")] = "1024",
    chunk: Annotated[str, typer.Option(help="Tokens per chunk (L).")] = "256",
    heads: Annotated[str, typer.Option(help="Heads (H).")] = "4",
    head_dim: Annotated[str, typer.Option(help="Features per head (D).")] = "64",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    growth: Annotated[str, typer.Option(help="Schedules of slots.")] = "plateau",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto; model:h200 models one.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each method; the median is reported.")] = 5,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Also other forms of OVQ, a gated recurrence, decoding, and the rate of matrix products; CPU.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for operator.json, operator.md and operator.png.", callback=writable_folder),
    ] = None,
    json: Json = False,
) -> None:
    """Time and memory of OVQ attention against exact causal attention. Options that take a list are comma-separated."""
    from cl_ovq.benchmarks.run import run_operator_benchmark

    run_operator_benchmark(
        {"forward": tokens, "forward_backward": backward_tokens},
        {
            "capacity": capacity,
            "chunk": chunk,
            "heads": heads,
            "head_dim": head_dim,
            "dtype": dtype,
            "growth": growth,
        },
        device=device,
        rounds=rounds,
        output=output,
        as_json=json,
        peers=peers,
    )


@bench.command("profile")
def bench_profile(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens (T).")] = 16384,
    capacity: Annotated[int, typer.Option(min=1, help="Slots per head (N).")] = 1024,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens per chunk (L).")] = 256,
    heads: Annotated[int, typer.Option(min=1, help="Heads (H).")] = 4,
    head_dim: Annotated[int, typer.Option(min=1, help="Features per head (D).")] = 64,
) -> None:
    """Where the time of OVQ attention in PyTorch goes (`implementation=chunked`), by operation, on one thread."""
    from cl_ovq.benchmarks.operator import FORWARD, FORWARD_BACKWARD, Case
    from cl_ovq.benchmarks.profile import profile_operator

    found = [
        profile_operator(Case(tokens, capacity, chunk, heads, head_dim, "float32", "cpu", direction))
        for direction in (FORWARD, FORWARD_BACKWARD)
    ]
    table = Table("share of the time", "forward", "forward + backward")
    for kind in found[0]:
        table.add(kind, *(Number(shares[kind], spec=".0%") for shares in found))
    Console().print(table)


@bench.command("operations")
def bench_operations(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from 0 on.")] = 5,
    output: Annotated[Path | None, typer.Option(help="File for all numbers as JSON.", callback=writable_file)] = None,
    json: Json = False,
) -> None:
    """Accuracy after merging the dictionaries of parallel workers, changing their capacity, and forgetting a task."""
    from cl_ovq.benchmarks.operations import measure_operations, operations_table
    from cl_ovq.paths import write_atomically

    measured = measure_operations(seeds, Console(stderr=True))
    if output is not None:
        write_atomically(output, dumps(measured, indent=2) + "\n")
    if json:
        print(dumps(measured, indent=2))
        return
    for name, aggregates in measured.items():
        Console().print(operations_table(name, aggregates))


@bench.command("heads")
def bench_heads(
    samples: Annotated[int, typer.Option(min=2, help="Feature vectors learned, and as many predicted.")] = 100_000,
    features: Annotated[int, typer.Option(min=1, help="Features of each (F).")] = 512,
    classes: Annotated[int, typer.Option(min=2, help="Classes (C).")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Samples learned together.")] = 128,
    seconds: Annotated[float, typer.Option(min=0, help="Learning and predicting are each cut short after.")] = 10.0,
    output: Annotated[Path | None, typer.Option(help="File for all numbers as JSON.", callback=writable_file)] = None,
    json: Json = False,
) -> None:
    """Samples a second of the memory head and its peers, beside scikit-learn's and Avalanche's, on one thread."""
    from cl_ovq.benchmarks.heads import Setting, heads_table, measure_heads
    from cl_ovq.paths import write_atomically

    setting = Setting(samples=samples, features=features, classes=classes, batch=batch, seconds=seconds)
    measured = measure_heads(setting, Console(stderr=True))
    if output is not None:
        write_atomically(output, dumps(measured, indent=2) + "\n")
    if json:
        print(dumps(measured, indent=2))
        return
    Console().print(heads_table(measured))


@bench.command("sweep")
def bench_sweep(
    file: Annotated[str, typer.Argument(help="A YAML file, or the name of one under ray_configs/.")] = "digits",
    overrides: Overrides = None,
    cores: Annotated[int, typer.Option(min=1, help="Cores of the sweep, and threads of the runs beside it.")] = 2,
    empty_trials: Annotated[int, typer.Option(min=0, help="Trials that do nothing, for the driver's time.")] = 200,
    output: Annotated[Path | None, typer.Option(help="File for all numbers as JSON.", callback=writable_file)] = None,
) -> None:
    """Throughput of a local sweep against the same runs in one warm process, and what a trial and the driver cost."""
    from cl_ovq.benchmarks.sweeps import measure_sweep
    from cl_ovq.paths import write_atomically

    measured = dumps(measure_sweep(file, overrides or (), cores, empty_trials, Console(stderr=True)), indent=2)
    if output is not None:
        write_atomically(output, measured + "\n")
    print(measured)
