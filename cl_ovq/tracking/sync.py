"""Sends what runs could not send themselves, and ends runs that were killed with the process beside them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cl_ovq.errors import UserError, printable
from cl_ovq.paths import expanded, is_folder
from cl_ovq.tracking.journal import PATTERN, JournalBusy, modified
from cl_ovq.tracking.names import describe_refused
from cl_ovq.tracking.own_files import NotOwnFileError, open_own
from cl_ovq.tracking.records import JournalMalformed
from cl_ovq.tracking.sending import Sending
from cl_ovq.tracking.store import absolute_uri, artifact_location, check_address
from cl_ovq.uris import redact

MALFORMED = ".malformed"  # ends the name of a journal that was set aside, so that it is not found again


@dataclass(frozen=True)
class Synced:
    """What became of one journal.

    Attributes:
        directory: of the run.
        outcome: `sent`, `kept` (not all of it could be sent), `running` (its own process is at it), or `malformed` (it
            is no journal, and was set aside).
        run_id: MLflow's id of the run, if it has one.
        reason: why it was kept or set aside, or what MLflow refused of it.
    """

    directory: Path
    outcome: str
    run_id: str | None = None
    reason: str | None = None

    def line(self) -> str:
        """Return it in one line."""
        return printable(f"{self.outcome}: {self.directory}" + (f": {self.reason}" if self.reason else ""))


def find_journals(root: Path) -> list[Path]:
    """Return the journals under a directory, parents' before their children's, the older first."""
    return sorted(root.rglob(PATTERN), key=lambda path: (len(path.parts), modified(path)))


def sync(root: Path, uri: str | None = None, *, anyway: bool = False) -> list[Synced]:
    """Send the journals under a directory to a store, each on its own.

    A run that was killed is marked so. What was sent is not sent again, and sending twice changes nothing. A journal is
    not trusted: it is sent to the store that is named here and to no other, and only with files of its run's folder.

    Args:
        root: a run's directory, or one that holds such.
        uri: the store; the default one if None.
        anyway: whether journals of runs that were to be kept in another store are sent, too; they are left alone
            otherwise.

    Raises:
        UserError: there is no such directory, or can be no such store.
    """
    root = expanded(root)
    if not is_folder(root):
        raise UserError(f"no directory {root}: give the directory of a run, or one with several runs")
    check_address(uri)
    return [_sync_one(path, uri, anyway=anyway) for path in find_journals(root)]


def _sync_one(path: Path, uri: str | None, *, anyway: bool) -> Synced:
    store = absolute_uri(uri)
    try:
        sending = Sending(path, store, artifact_location(uri))
    except JournalBusy:
        return Synced(path.parent, "running")
    except JournalMalformed as error:
        return _set_aside(path, error)
    except FileNotFoundError:  # sent in this moment
        return Synced(path.parent, "sent")
    except OSError as error:
        return Synced(path.parent, "kept", reason=f"{path.name} cannot be opened: {error.strerror}")
    try:
        named = sending.check()
    except JournalMalformed as error:
        sending.reader.close()
        return _set_aside(path, error)
    if named is not None and redact(named) != redact(store) and not anyway:
        sending.reader.close()
        return Synced(
            path.parent,
            "kept",
            sending.run_id,
            f"its run was to be kept in {redact(named)}: name the store with --uri to send it there",
        )
    sent = sending.finish()
    if sending.malformed is not None:
        return _set_aside(path, sending.malformed)
    over = sending.state.ended or sending.run_id is None
    outcome = "kept" if not sent else "sent" if over else "running"
    refused = sending.state.refused
    return Synced(
        path.parent, outcome, sending.run_id, sending.problem or (describe_refused(refused) if refused else None)
    )


def _set_aside(path: Path, error: JournalMalformed) -> Synced:
    """Take a journal that is none out of the way of the next time; what is no file at all is left where it is."""
    reason = f"{path.name} is not the journal of a run: {error}"
    with suppress(NotOwnFileError, OSError):
        open_own(path).close()
        path.rename(path.with_name(path.name + MALFORMED))
        reason += f"; it is now {path.name}{MALFORMED}"
    return Synced(path.parent, "malformed", reason=reason)
