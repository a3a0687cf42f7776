"""From the options of `cl-ovq bench operator` to its table, figure and files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_ovq.benchmarks.cost import MACHINES, modelled_rows
from cl_ovq.benchmarks.decoding import measure_decoding
from cl_ovq.benchmarks.operator import DTYPES, Case, measure_operator
from cl_ovq.benchmarks.operator_report import (
    machine_tables,
    markdown,
    modelled_markdown,
    operator_figure,
    peer_tables,
    tables,
)
from cl_ovq.benchmarks.peers import PEERS
from cl_ovq.benchmarks.products import product_rates
from cl_ovq.errors import UserError, unknown
from cl_ovq.mixers.recurrences import require_library
from cl_ovq.paths import write_atomically
from cl_ovq.runs.checking import find_device
from kernels import GROWTH

DECODED = (1024, 16384, 65536)  # tokens before those that are decoded
NAMED = {"dtype": tuple(DTYPES), "growth": tuple(GROWTH)}


def run_operator_benchmark(
    tokens: Mapping[str, str],
    lists: Mapping[str, str],
    *,
    device: str,
    rounds: int,
    output: Path | None,
    as_json: bool,
    peers: bool = False,
) -> None:
    """Measure every combination of the given lists, print the table, and write the files that were asked for.

    Args:
        tokens: comma-separated numbers of tokens for each direction; a direction without any is not measured.
        lists: comma-separated values for each other field of `Case` but the device.
        device: a device's name, `auto`, or `model:` and a name in `MACHINES`, for which nothing is measured.
        rounds: timings of each method.
        output: folder for `operator.json`, `operator.md` and `operator.png`.
        as_json: whether standard output carries the result as JSON, and nothing else.
        peers: whether to measure OVQ's other forms, a gated recurrence, decoding and the rate of matrix products too.

    Raises:
        UserError: an option holds something that cannot be measured.
    """
    modelled = device.removeprefix("model:") if device.startswith("model:") else None
    if modelled is not None and modelled not in MACHINES:
        raise unknown("modelled device", modelled, tuple(MACHINES))
    place = device if modelled is not None else str(find_device(device))
    values = {name: parse_list(name, text) for name, text in lists.items()}
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    lengths = {direction: parse_list("tokens", text) for direction, text in tokens.items() if text}
    cases = [
        Case(tokens=length, direction=direction, device=place, **combination)
        for direction, found in lengths.items()
        for length in found
        for combination in combinations
    ]
    if not cases:
        raise UserError("--tokens and --backward-tokens are both empty: nothing to measure")
    if modelled is not None:
        if "recycle" in values.get("growth", ()):
            raise UserError("--growth: the cost model does not support recycle: remove it")
        rows = modelled_rows(modelled, [asdict(case) for case in cases])
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            write_atomically(output / f"modelled_{modelled}.json", json.dumps(rows, indent=2) + "\n")
            write_atomically(output / f"modelled_{modelled}.md", modelled_markdown(rows))
        print(json.dumps(rows, indent=2) if as_json else modelled_markdown(rows))
        return
    if peers and place != "cpu":
        raise UserError(f"--peers: measured on a CPU, not on {place}: add --device cpu")
    if peers:
        require_library("gated_delta")
    progress = Console(stderr=True)
    with progress.status("measuring") as status:
        names = tuple(PEERS) if peers else ()
        result = measure_operator(cases, rounds, lambda line: status.update(f"measuring {line}"), names)
        if peers:
            shape = {name: getattr(cases[0], name) for name in ("capacity", "chunk", "heads", "head_dim")}
            status.update("measuring decoding")
            result["decoding"] = measure_decoding(DECODED, rounds=rounds, **shape)
            result["products"] = product_rates(**shape)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "operator.json", json.dumps(result, indent=2) + "\n")
        write_atomically(output / "operator.md", markdown(result))
        operator_figure(result).savefig(output / "operator.png", dpi=120)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    for table in (*tables(result, ranges=False), *peer_tables(result, ranges=False), *machine_tables(result)):
        console.print(table)
    console.print(f"median of {rounds}; {result['machine']['device']}")


def parse_list(name: str, text: str) -> list[Any]:
    """Return the values of a comma-separated option.

    Raises:
        UserError: a value is not a positive integer, or not a known name.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"--{name.replace('_', '-')}: empty list")
    if name in NAMED:
        for part in parts:
            if part not in NAMED[name]:
                raise unknown(name, part, NAMED[name])
        return list(parts)
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise UserError(f"--{name.replace('_', '-')}: '{part}' is not a positive integer")
    return [int(part) for part in parts]
