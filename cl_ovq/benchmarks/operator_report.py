"""The operator's benchmark as a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from cl_ovq.benchmarks.operator import METHODS, series

COLUMNS = ("tokens", "OVQ s", "SDPA s", "speed-up", "OVQ MB", "SDPA MB", "share of matmul")


def title(row: dict[str, Any]) -> str:
    """Return a series of rows in words, from any one of them."""
    shape = f"N={row['capacity']}, L={row['chunk']}, H={row['heads']}, D={row['head_dim']}"
    return f"{row['direction'].replace('_', ' + ')}, {shape}, {row['dtype']}"


def cells(row: dict[str, Any], *, spread: bool) -> list[str]:
    """Return a row as text, in the order of `COLUMNS`; seconds with their spread if asked for."""
    return [
        f"{row['tokens']}",
        _seconds(row, "ovq", spread),
        _seconds(row, "sdpa", spread),
        f"{row['speedup']:.2f}",
        f"{row['ovq_peak_bytes'] / 1e6:.0f}",
        f"{row['sdpa_peak_bytes'] / 1e6:.0f}",
        f"{row['matmul_share']:.0%}",
    ]


def markdown(result: dict[str, Any]) -> str:
    """Return the benchmark's series as Markdown tables."""
    parts = []
    for group in series(result["rows"]).values():
        lines = [COLUMNS, ["---:"] * len(COLUMNS), *(cells(row, spread=True) for row in group)]
        parts.append(f"**{title(group[0])}**\n\n" + _table(lines))
        if "peers" in group[0]:
            peers = list(dict.fromkeys(name for row in group for name in row["peers"]))
            lines = [["tokens", "predicted s", "share of copy rate", *(f"{name} s" for name in peers)]]
            lines.append(["---:"] * len(lines[0]))
            for row in group:
                times = [row["peers"][name] for name in peers]
                lines.append(
                    [
                        f"{row['tokens']}",
                        f"{row['predicted_seconds']:.3g}",
                        f"{row['memory_share']:.0%}",
                        *(time if isinstance(time, str) else f"{time:.3g}" for time in times),
                    ]
                )
            parts.append(_table(lines))
    if result.get("decode"):
        lines = [["context", "median step s", "tokens per second"], ["---:"] * 3]
        lines += [
            [f"{row['context']}", f"{row['median_seconds']:.3g}", f"{row['tokens_per_second']:.0f}"]
            for row in result["decode"]
        ]
        parts.append("**decoding, one token at a time**\n\n" + _table(lines))
    return "\n".join(parts)


def modelled_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the cost model's rows as Markdown tables."""
    columns = ("tokens", "scan s", "read s", "backward s", "OVQ s", "flash s", "speed-up", "share of matmul")
    names = ("scan_seconds", "read_seconds", "backward_seconds", "seconds", "flash_seconds")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(title(row), []).append(row)
    parts = []
    for name, group in groups.items():
        lines: list[Any] = [columns, ["---:"] * len(columns)]
        for row in group:
            times = [f"{row[key]:.3g}" for key in names]
            lines.append([f"{row['tokens']}", *times, f"{row['speedup']:.2f}", f"{row['matmul_share']:.0%}"])
        step = f"A decoding step: {group[0]['decode_seconds']:.2g} s at any position.\n"
        parts.append(f"**{name}, modelled, not measured**\n\n{_table(lines)}\n{step}")
    return "\n".join(parts)


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def terminal_tables(result: dict[str, Any]) -> list[Table]:
    """Return the series as tables for the terminal, each with the growth of OVQ's time and the crossover."""
    tables = []
    for group, entry in zip(series(result["rows"]).values(), result["series"], strict=True):
        growth = ", ".join(f"{slope['factor']:.2f}x from {slope['from']} to {slope['to']}" for slope in entry["slopes"])
        crossing = entry["crossover_tokens"]
        faster = f"from {crossing} tokens on" if crossing else "at no length measured"
        table = Table(title=title(group[0]), title_justify="left", caption_justify="left")
        table.caption = (f"OVQ's time: {growth}\n" if growth else "") + f"OVQ is at least as fast {faster}"
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for row in group:
            table.add_row(*cells(row, spread=False))
        tables.append(table)
    return tables


def operator_figure(result: dict[str, Any]) -> Figure:
    """Draw time and peak memory over the number of tokens, one line per method, direction and shape."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for group in series(result["rows"]).values():
        tokens = [row["tokens"] for row in group]
        first = group[0]
        direction = first["direction"].replace("_", "+")
        style = "-" if direction == "forward" else "--"
        for method, color in zip(METHODS, ("tab:blue", "tab:orange"), strict=True):
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
    time_axes.legend(fontsize="small")
    return figure


def _seconds(row: dict[str, Any], method: str, spread: bool) -> str:
    median = f"{row[f'{method}_seconds']:.3g}"
    low, high = row[f"{method}_seconds_range"]
    return f"{median} ({low:.3g} to {high:.3g})" if spread else median
