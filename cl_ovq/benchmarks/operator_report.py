"""The operator's benchmark as a table and a figure."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from cl_ovq.benchmarks.operator import METHODS, series

COLUMNS = ("direction", "tokens", "N", "L", "OVQ s", "SDPA s", "speed-up", "OVQ MB", "SDPA MB", "share of matmul")


def table_rows(result: dict[str, Any], *, spread: bool = True) -> list[list[str]]:
    """Return the benchmark's rows as text, in the order of `COLUMNS`; seconds with their spread if asked for."""
    return [
        [
            row["direction"].replace("_", "+"),
            f"{row['tokens']}",
            f"{row['capacity']}",
            f"{row['chunk']}",
            _seconds(row, "ovq", spread),
            _seconds(row, "sdpa", spread),
            f"{row['speedup']:.2f}",
            f"{row['ovq_peak_bytes'] / 1e6:.0f}",
            f"{row['sdpa_peak_bytes'] / 1e6:.0f}",
            f"{row['matmul_share']:.0%}",
        ]
        for group in series(result["rows"]).values()
        for row in group
    ]


def markdown_table(result: dict[str, Any]) -> str:
    """Return the benchmark's rows as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *table_rows(result)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


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
    for axes, name in ((time_axes, "seconds"), (memory_axes, "peak memory beyond the inputs, MB")):
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
