"""The commands of `cl-ovq bench`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_ovq.cli.arguments import Config, Json, Overrides, writable_file, writable_folder
from cl_ovq.report.table import Number, Table

bench = typer.Typer(help="Benchmark speed and memory, as ratios measured side by side.", no_args_is_help=True)


@bench.command("training")
def bench_training(
    config: Config = "quickstart",
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements per loop.")] = 5,
    json: Json = False,
) -> None:
    """Compare samples per second of the training loop, Avalanche's own data path, and bare PyTorch."""
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
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of runs, with and without tracking.")] = 5,
    json: Json = False,
) -> None:
    """Compare the time of runs with and without MLflow tracking."""
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
    tokens: Annotated[
        str, typer.Option(help="Numbers of tokens (T) for the forward pass.")
    ] = "1024,4096,8192,16384,32768,65536",
    backward_tokens: Annotated[
        str, typer.Option(help="Numbers of tokens for forward and backward; empty for none.")
    ] = "1024,4096,8192,16384,32768",
    capacity: Annotated[str, typer.Option(help="Slots per head (N).")] = "1024",
    chunk: Annotated[str, typer.Option(help="Tokens per chunk (L).")] = "256",
    heads: Annotated[str, typer.Option(help="Heads (H).")] = "4",
    head_dim: Annotated[str, typer.Option(help="Features per head (D).")] = "64",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    growth: Annotated[str, typer.Option(help="Growth schedules.")] = "plateau",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto; model:h200 uses a cost model.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Timings per method; the median is reported.")] = 5,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Also measure other forms of OVQ, Gated DeltaNet, decoding and matrix-product rates (CPU only).",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Output directory for operator.json, operator.md and operator.png.", callback=writable_folder
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare time and memory of OVQ and exact causal attention. Lists are comma-separated."""
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
    """Profile OVQ attention in PyTorch (`implementation=chunked`) by operation, on one thread."""
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
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, starting at 0.")] = 5,
    output: Annotated[
        Path | None, typer.Option(help="Output file for all numbers (JSON).", callback=writable_file)
    ] = None,
    json: Json = False,
) -> None:
    """Measure accuracy after merging the dictionaries of parallel workers, resizing, and forgetting a task."""
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
    samples: Annotated[int, typer.Option(min=2, help="Number of feature vectors to learn, and to predict.")] = 100_000,
    features: Annotated[int, typer.Option(min=1, help="Features per vector (F).")] = 512,
    classes: Annotated[int, typer.Option(min=2, help="Classes (C).")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 128,
    seconds: Annotated[float, typer.Option(min=0, help="Time limit for learning and for predicting.")] = 10.0,
    output: Annotated[
        Path | None, typer.Option(help="Output file for all numbers (JSON).", callback=writable_file)
    ] = None,
    json: Json = False,
) -> None:
    """Compare samples per second of the memory head, its peers, scikit-learn and Avalanche, on one thread."""
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
    file: Annotated[str, typer.Argument(help="YAML file, or name of a sweep.")] = "digits",
    overrides: Overrides = None,
    cores: Annotated[int, typer.Option(min=1, help="CPU cores of the sweep, and threads of the reference runs.")] = 2,
    empty_trials: Annotated[int, typer.Option(min=0, help="Empty trials, to measure the driver's time.")] = 200,
    output: Annotated[
        Path | None, typer.Option(help="Output file for all numbers (JSON).", callback=writable_file)
    ] = None,
) -> None:
    """Compare the throughput of a local sweep and of one warm process; measure the cost of trials and the driver."""
    from cl_ovq.benchmarks.sweeps import measure_sweep
    from cl_ovq.paths import write_atomically

    measured = dumps(measure_sweep(file, overrides or (), cores, empty_trials, Console(stderr=True)), indent=2)
    if output is not None:
        write_atomically(output, measured + "\n")
    print(measured)
