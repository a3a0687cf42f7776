"""What somebody who reads a comparison ought to know before: single seeds, and data that is not the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cl_ovq.config.identity import identity
from cl_ovq.runs.groups import Group
from cl_ovq.runs.result import Result


def cautions(groups: Sequence[Group]) -> list[str]:
    """Return in a line each what makes differences between groups doubtful; nothing where nothing does."""
    return [line for line in (_single_seeds(groups), _different_data(groups)) if line]


def _single_seeds(groups: Sequence[Group]) -> str:
    seeds = [seed for group in groups for seed in group.runs]
    if any(len(group.runs) > 1 for group in groups) or len(set(seeds)) == 1:
        return ""
    return (
        f"single runs of different seeds ({', '.join(map(str, dict.fromkeys(seeds)))}): their differences say little, "
        "for the seed alone makes some: run several of each, e.g. seeds=5"
    )


def _different_data(groups: Sequence[Group]) -> str:
    """Say of the first two runs whose configurations have the same stream that they read different data."""
    known: dict[str, Result] = {}
    for run in (run for group in groups for run in group.runs.values()):
        leaves = identity(run.config).whole
        stream = {key: value for key, value in leaves.items() if key.startswith("stream.")}
        data = run.provenance.get("data", {})
        # What a stream draws differs between seeds, and what it reads does not.
        for key, part in ((None, data.get("files")), (leaves.get("seed"), data)):
            found = checksums(part)
            name = json.dumps([stream, key], sort_keys=True)
            other = known.setdefault(name, run) if found else run
            theirs = other.provenance.get("data", {})
            if found != checksums(theirs.get("files") if key is None else theirs) and other is not run:
                return (
                    f"'{other.run_name}' and '{run.run_name}' have the same stream in their configurations, and "
                    "different data (checksums differ): their numbers are not of the same samples"
                )
    return ""


def checksums(found: Any) -> frozenset[str]:
    """Return every checksum in plain data, wherever in it."""
    if not isinstance(found, dict):
        return frozenset()
    own = {str(value) for key, value in found.items() if str(key).endswith("sha256")}
    return frozenset(own).union(*map(checksums, found.values()))
