"""The records as a page that a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from cl_ovq.benchmarks.gpu import records
from cl_ovq.benchmarks.gpu.parts import PARTS
from cl_ovq.report.table import Column, Number, Table

LEGEND = (
    "`relative_rms`: root mean square of the error over that of the fp64 result. `same_bits`: whether a second call "
    "gave the same. `right`: whether the result is within what rounding explains. Times are in seconds, rates per "
    "second."
)


def summary(output: Path, part: str) -> str:
    """A part in a few words."""
    found = records.read(records.path_of(output, part))
    ended = list(records.ended(found).values())
    failed = [row for row in ended if not row["ok"]]
    wrong = [row for row in ended if row["ok"] and not records.is_right(row)]
    words = f"{len(ended)} items, {len(failed)} failed, {len(wrong)} wrong"
    tests = [row.get("outcome") for row in found if "test" in row]
    return words + (f"; {len(tests)} tests, {tests.count('failed')} failed" if tests else "")


def report(output: Path, lacking: Sequence[str], *, rehearsal: bool) -> None:
    """Write `report.md`: how every part ended, its numbers, and every failure."""
    lines = ["# On a GPU" if not rehearsal else "# A rehearsal, without a GPU: no time here means anything", ""]
    versions = records.result_of(_ended(output, "probe").get("versions", {}))
    machine, code = _words(versions.get("gpu", "no GPU")), _words(versions.get("code"))
    lines += [f"{date.today()}, {machine}, code {code}. {LEGEND}", ""]
    lines += [f"Left out for want of {line}." for line in lacking]
    for part in PARTS:
        found = records.read(records.path_of(output, part.name))
        state = "" if records.is_done(found) else " Not at its end: a further call goes on." if found else " Not begun."
        lines += ["", f"## {part.name.replace('_', ' ')}", "", f"{summary(output, part.name)}.{state}", ""]
        if part.name == "speed":
            lines += _ratios(output)
        ended = records.ended(found).values()
        table = Table("item", "s", Column("result", right=False))
        for row in ended:
            if row["ok"]:
                table.add(row["item"], Number(row.get("seconds", 0), spec=".1f"), _words(row.get("result")))
        if table.rows:
            lines.append(table.to_markdown())
        lines += _failures(found)
    (output / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ended(output: Path, part: str) -> dict[str, records.Record]:
    return records.ended(records.read(records.path_of(output, part)))


def _ratios(output: Path) -> list[str]:
    """Seconds of fused attention over ours, for every call that has both."""
    ended = _ended(output, "speed")
    seconds = {name: records.result_of(row)["seconds"]["median"] for name, row in ended.items() if _is_timed(row)}
    table = Table("call", "flash / OVQ", "cuDNN / OVQ")
    for ours, spent in seconds.items():
        peers = [f"{peer} {ours}" for peer in ("flash", "cudnn")]
        if any(peer in ended for peer in peers):
            table.add(ours, *(Number(seconds[peer] / spent if peer in seconds else None, spec=".2f") for peer in peers))
    return ["Above 1, OVQ is faster:", "", table.to_markdown()] if table.rows else []


def _is_timed(row: records.Record) -> bool:
    seconds = records.result_of(row).get("seconds")
    return isinstance(seconds, dict) and "median" in seconds


def _failures(found: Iterable[records.Record]) -> list[str]:
    lines = []
    for row in found:
        if "error" in row:
            name = row.get("item", row.get("test", "the part could not start"))
            lines += [f"**{name}**", "", "```", str(row["error"]).strip()[-1200:], "```", ""]
    return lines


def _words(result: Any) -> str:
    """A result in one cell."""
    if isinstance(result, dict):
        return ", ".join(f"{name} {_words(value)}" for name, value in result.items() if name != "output")
    if isinstance(result, bool) or result is None:
        return {True: "yes", False: "NO", None: "-"}[result]
    if isinstance(result, float):
        return f"{result:.3g}"
    if isinstance(result, list):
        return " ".join(_words(value) for value in result) or "none"
    return str(result)[:200]
