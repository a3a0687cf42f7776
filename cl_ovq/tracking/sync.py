"""Sends what runs could not send themselves, and ends runs that were killed with the process beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cl_ovq.addresses import HIDDEN
from cl_ovq.errors import UserError
from cl_ovq.tracking.journal import PATTERN, JournalBusy
from cl_ovq.tracking.sending import Sending
from cl_ovq.tracking.store import absolute_uri


@dataclass(frozen=True)
class Synced:
    """What became of one journal.

    Attributes:
        directory: of the run.
        outcome: `sent`, `kept` (not all of it could be sent), or `running` (its own process is at it).
        run_id: MLflow's id of the run, if it has one.
        reason: why it was kept.
    """

    directory: Path
    outcome: str
    run_id: str | None = None
    reason: str | None = None


def find_journals(root: Path) -> list[Path]:
    """Return the journals under a directory, parents' before their children's, the older first."""
    return sorted(root.rglob(PATTERN), key=lambda path: (len(path.parts), path.stat().st_mtime_ns))


def sync(root: Path, uri: str | None = None) -> list[Synced]:
    """Send the journals under a directory.

    A run that was killed is marked so. What was sent is not sent again, and sending twice changes nothing.

    Args:
        root: a run's directory, or one that holds such.
        uri: the store, instead of the one that each run was to be kept in.

    Raises:
        UserError: there is no such directory.
    """
    if not root.is_dir():
        raise UserError(f"no directory {root}: name a run's directory, or one that holds such")
    return [_sync_one(path, uri) for path in find_journals(root)]


def _sync_one(path: Path, uri: str | None) -> Synced:
    try:
        sending = Sending(path, absolute_uri(uri) if uri else _address(path))
    except JournalBusy:
        return Synced(path.parent, "running")
    except FileNotFoundError:  # sent in this moment
        return Synced(path.parent, "sent")
    sending.end_if_abandoned()
    sent = sending.finish()
    outcome = "kept" if not sent else "sent" if sending.state.ended else "running"
    return Synced(path.parent, outcome, sending.run_id, sending.problem)


def _address(path: Path) -> str:
    """Return the store that a run was to be kept in. A password that was in its address is not in the journal."""
    with path.open(encoding="utf-8") as file:  # the first line, of a run or of one resumed, says it
        uri: str = json.loads(file.readline())["uri"]
    return uri.replace(f":{HIDDEN}@", "@")  # PostgreSQL's client then asks PGPASSWORD or ~/.pgpass
