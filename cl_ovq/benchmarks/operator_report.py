"""The operator's benchmark as a table and a figure."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from cl_ovq.benchmarks.operator import METHODS, series
from cl_ovq.benchmarks.peers import PEERS
from cl_ovq.evaluation.drawing import legend, new_figure
from cl_ovq.evaluation.style import PALETTE
from cl_ovq.report.table import Column, Number, Table

COLUMNS = ("tokens", "OVQ s", "SDPA s", "speed-up", "OVQ MB", "SDPA MB", "share of matmul")


def title(row: dict[str, Any]) -> str:
    """Return a series of rows in words, from any one of them."""
    shape = f"N={row['capacity']}, L={row['chunk']}, H={row['heads']}, D={row['head_dim']}"
    if (growth := row.get("growth", "plateau")) != "plateau":
        shape += f", growth {growth}"
    return f"{row['direction'].replace('_', ' + ')}, {shape}, {row['dtype']}"


def tables(result: dict[str, Any], *, ranges: bool) -> list[Table]:
    """Return a table for each series of rows.

    Args:
        result: of `measure_operator`.
        ranges: whether the spread of seconds is in the cells, for files, or the growth of OVQ's time below the table.
    """
    found = []
    for group, entry in zip(series(result["rows"]).values(), result["series"], strict=True):
        growth = ", ".join(f"{slope['factor']:.2f}x from {slope['from']} to {slope['to']}" for slope in entry["slopes"])
        crossing = entry["crossover_tokens"]
        faster = "OVQ is at least as fast " + (f"from {crossing} tokens on" if crossing else "at no length measured")
        caption = "" if ranges else (f"OVQ's time: {growth}\n" if growth else "") + faster
        table = Table(*map(Column, COLUMNS), title=title(group[0]), caption=caption)
        for row in group:
            table.add(
                row["tokens"],
                *(_seconds(row, method, ranges) for method in METHODS),
                Number(row["speedup"], spec=".2f"),
                *(Number(row[f"{method}_peak_bytes"] / 1e6, spec=".0f") for method in METHODS),
                Number(row["matmul_share"], spec=".0%"),
            )
        found.append(table)
    return found


def peer_tables(result: dict[str, Any], *, ranges: bool) -> list[Table]:
    """Return a table for each series of rows that has peers: their time over OVQ's, and their memory.

    Args:
        result: of `measure_operator`.
        ranges: whether seconds and their spread are in the cells.
    """
    found = []
    for group in series(result["rows"]).values():
        names = tuple(group[0].get("peers", {}))
        if not names:
            continue
        columns = [Column("tokens"), *(Column(f"{PEERS[name]} {unit}") for unit in ("x", "MB") for name in names)]
        table = Table(*columns, title=f"{title(group[0])}: time over OVQ's")
        for row in group:
            peers = [row["peers"][name] for name in names]
            table.add(
                row["tokens"],
                *(_beside(peer, ranges) for peer in peers),
                *(Number(peer["peak_bytes"] / 1e6, spec=".0f") for peer in peers),
            )
        found.append(table)
    return found


def decoding_table(rows: list[dict[str, Any]]) -> Table:
    """Return the microseconds that a token takes in decoding, with the spread."""
    columns = ("tokens before", "OVQ us", "OVQ in PyTorch us", "softmax over a cache us")
    table = Table(*map(Column, columns), title="decoding, a token and layer")
    for row in rows:
        cells = []
        for method in ("ovq", "chunked", "softmax"):
            median, (low, high) = row[method]["seconds"], row[method]["seconds_range"]
            cells.append(f"{median * 1e6:.0f} ({low * 1e6:.0f} to {high * 1e6:.0f})")
        table.add(row["tokens"], *cells)
    return table


def products_table(rates: dict[str, float]) -> Table:
    """Return the rates of matrix products, and their shares of the largest."""
    table = Table("product", "GFLOP/s", "share of the best", title="matrix products")
    for name, rate in rates.items():
        table.add(name, Number(rate / 1e9, spec=".0f"), Number(rate / max(rates.values()), spec=".0%"))
    return table


def markdown(result: dict[str, Any]) -> str:
    """Return all tables of the benchmark as Markdown."""
    found = [*tables(result, ranges=True), *peer_tables(result, ranges=True), *machine_tables(result)]
    return "\n".join(f"**{table.title}**\n\n{table.to_markdown()}" for table in found)


def machine_tables(result: dict[str, Any]) -> list[Table]:
    """Return the tables of decoding and of products, where they were measured."""
    decoding, products = result.get("decoding"), result.get("products")
    return [*([decoding_table(decoding)] if decoding else []), *([products_table(products)] if products else [])]


def modelled_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the cost model's rows as Markdown tables."""
    columns = ("tokens", "scan s", "read s", "backward s", "OVQ s", "flash s", "speed-up", "share of matmul")
    names = ("scan_seconds", "read_seconds", "backward_seconds", "seconds", "flash_seconds")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(title(row), []).append(row)
    parts = []
    for name, group in groups.items():
        step = f"A decoding step: {group[0]['decode_seconds']:.2g} s at any position."
        table = Table(*map(Column, columns), caption=step)
        for row in group:
            times = [Number(row[key], spec=".3g") for key in names]
            rates = Number(row["speedup"], spec=".2f"), Number(row["matmul_share"], spec=".0%")
            table.add(row["tokens"], *times, *rates)
        parts.append(f"**{name}, modelled, not measured**\n\n{table.to_markdown()}")
    return "\n".join(parts)


def operator_figure(result: dict[str, Any]) -> Figure:
    """Draw time and peak memory over the number of tokens, one line per method, direction and shape."""
    figure = new_figure(10, 4)
    time_axes, memory_axes = figure.subplots(1, 2)
    for group in series(result["rows"]).values():
        tokens = [row["tokens"] for row in group]
        first = group[0]
        direction = first["direction"].replace("_", "+")
        style = "-" if direction == "forward" else "--"
        for method, color in zip(METHODS, PALETTE, strict=False):
            label = f"{method} {direction}"
            if method == "ovq":
                label += f" N={first['capacity']} L={first['chunk']}"
            time_axes.plot(
                tokens, [row[f"{method}_seconds"] for row in group], style, color=color, marker="o", label=label
            )
            memory = [row[f"{method}_peak_bytes"] / 1e6 for row in group]
            memory_axes.plot(tokens, memory, style, color=color, marker="o", label=label)
    for axes, name in ((time_axes, "seconds"), (memory_axes, "peak memory, inputs included, MB")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel(name)
        axes.grid(visible=True, alpha=0.3)
    legend(figure, time_axes)
    return figure


def _seconds(row: dict[str, Any], method: str, ranges: bool) -> Number | str:
    median, (low, high) = row[f"{method}_seconds"], row[f"{method}_seconds_range"]
    return f"{median:.3g} ({low:.3g} to {high:.3g})" if ranges else Number(median, spec=".3g")


def _beside(peer: dict[str, Any], ranges: bool) -> Number | str:
    if not ranges:
        return Number(peer["speedup"], spec=".2f")
    low, high = peer["seconds_range"]
    return f"{peer['speedup']:.2f} ({low:.3g} to {high:.3g} s)"
