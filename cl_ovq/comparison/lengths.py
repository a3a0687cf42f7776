"""Runs over seeds on sequences of other lengths: as they were evaluated, or evaluated now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cl_ovq.errors import UserError
from cl_ovq.runs.groups import Group
from cl_ovq.runs.reevaluate import finished_lengths

Records = list[dict[str, Any]]


def lengths_of(
    groups: Sequence[Group], lengths: Sequence[int], tokens: int, console: Console, *, sharpen: bool = False
) -> dict[str, list[Records]]:
    """Return what the runs of each group reach at each length.

    Args:
        groups: see `load_groups`; runs that diverged are left out.
        lengths: in tokens, at which the runs' checkpoints are evaluated now; if empty, what the runs measured is read.
        tokens: of all sequences of one length together, where they are evaluated now.
        console: where progress is drawn.
        sharpen: with `lengths`, see `evaluation.lengths.evaluate_lengths`.

    Returns:
        Records as data of each run (see `evaluation.lengths.LengthRecord`), by the name of the group.

    Raises:
        UserError: a run was not evaluated so, or has no checkpoint.
    """
    found: dict[str, list[Records]] = {}
    with Progress(console=console, transient=True, disable=not lengths or not console.is_terminal) as progress:
        shown = progress.add_task("evaluating", total=sum(len(group.sound) for group in groups))
        for group in groups:
            found[group.name] = []
            if not group.sound:
                raise UserError(f"{group.name}: all runs diverged, and were not evaluated at other lengths")
            for run in group.sound.values():
                records = finished_lengths(run.output_dir, lengths, tokens, sharpen=sharpen) if lengths else run.lengths
                if not records:
                    raise UserError(f"{group.name}: the run was not evaluated at other lengths: name lengths with --at")
                if [record["tokens"] for record in records] != [
                    record["tokens"] for record in (found[group.name] or [records])[0]
                ]:
                    raise UserError(f"{group.name}: its seeds were evaluated at unlike lengths: name lengths with --at")
                found[group.name].append(records)
                progress.advance(shown)
    return found
