"""Runs over seeds on sequences of other lengths: as they were evaluated, or evaluated now."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from cl_ovq.config.identity import differences, identity
from cl_ovq.errors import UserError
from cl_ovq.evaluation.records import LengthRecord
from cl_ovq.runs.groups import Group
from cl_ovq.runs.reevaluate import finished_lengths

Records = list[LengthRecord]


def lengths_of(
    groups: Sequence[Group], lengths: Sequence[int], tokens: int, console: Console, *, log_length_scaling: bool = False
) -> dict[str, list[Records]]:
    """Return what the runs of each group reach at each length.

    Args:
        groups: see `load_groups`; runs that diverged are left out.
        lengths: in tokens, at which the runs' checkpoints are evaluated now; if empty, what the runs measured is read.
        tokens: of all sequences of one length together, where they are evaluated now.
        console: where progress is drawn.
        log_length_scaling: with `lengths`, see `evaluation.length_generalization.evaluate_lengths`.

    Returns:
        Records of each run, by the name of the group.

    Raises:
        UserError: a run was not evaluated so, or otherwise than another seed, or has no checkpoint.
    """
    found: dict[str, list[Records]] = {}
    with Progress(console=console, transient=True, disable=not lengths or not console.is_terminal) as progress:
        shown = progress.add_task("evaluating", total=sum(len(group.sound) for group in groups))
        for group in groups:
            found[group.name] = []
            if not group.sound:
                raise UserError(f"{group.name}: all runs diverged, so none was evaluated at other lengths")
            if not lengths:
                _check_alike(group)
            for run in group.sound.values():
                records = (
                    finished_lengths(run.output_dir, lengths, tokens, log_length_scaling=log_length_scaling)
                    if lengths
                    else run.lengths
                )
                if not records:
                    raise UserError(f"{group.name}: the run was not evaluated at other lengths: set lengths with --at")
                if [record["tokens"] for record in records] != [
                    record["tokens"] for record in (found[group.name] or [records])[0]
                ]:
                    raise UserError(
                        f"{group.name}: its seeds were evaluated at different lengths: set lengths with --at"
                    )
                found[group.name].append(records)
                progress.advance(shown)
    return found


def _check_alike(group: Group) -> None:
    """Refuse a mean over runs of which some were evaluated otherwise than others."""
    first, *others = (identity(run.config).evaluation for run in group.sound.values())
    for other in others:
        for key, values in differences(first, other).items():
            raise UserError(
                f"{group.name}: the seeds were evaluated differently: {key} is {values[0]} for one and {values[1]} for "
                "another: set lengths with --at"
            )
