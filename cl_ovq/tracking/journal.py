"""A run's journal: everything that MLflow shall be told of it, as JSON lines in the run's directory.

The run appends to it and never waits. Whoever sends it (`sending.py`) keeps beside it how far it got. Each of the two
holds a lock on one byte of the file, which the system takes away when the process dies, however it dies: so anybody can
tell whether a run is still alive, and whether its journal is being sent.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cl_ovq.paths import replace_file
from cl_ovq.tracking.own_files import NotOwnFileError, open_own
from cl_ovq.tracking.records import Ended, JournalMalformed, Record, Resumed, State, read_record, read_state

WRITER, SENDER = 0, 1  # the bytes of the file that are locked
PATTERN = "tracking-*.jsonl"
LOCKING_SECONDS = 2.0
READING = 1 << 20  # bytes of a journal at a time
LONGEST = 1 << 24  # bytes of a line
WAITING = 1 << 26  # bytes that wait for room on a full disk


class JournalBusy(Exception):
    """Another process holds the journal."""


def _try_lock(file: BinaryIO, byte: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except OSError:
        return False
    return True


def state_of(journal: Path) -> State:
    """Read the state that lies beside a journal.

    Raises:
        JournalMalformed: it is missing, or none.
    """
    try:
        with open_own(journal.with_suffix(".json")) as file:
            return read_state(file.read(LONGEST))
    except FileNotFoundError as error:
        raise JournalMalformed("the state beside it is missing") from error
    except (NotOwnFileError, OSError) as error:
        raise JournalMalformed(f"the state beside it cannot be read: it is {error}") from error


def keep_state(state: State, journal: Path) -> None:
    """Write the state beside a journal, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    replace_file(journal.with_suffix(".json"), [state.model_dump_json().encode(), b"\n"])


class JournalWriter:
    """The run's end of a journal.

    What is in the file is always a beginning of what was written: where the disk is full the rest waits in memory for
    room. So a run that is resumed finds no gap behind which there is something already.

    Args:
        directory: of the run.
        parameters: digest of those that the run begins with.
        resume: whether to go on with the directory's last journal; otherwise it is a new one. None goes on if that run
            began with the same parameters.

    Attributes:
        path: of the journal.
        key: names the run wherever it is kept, before and after MLflow gave it an id.
        resumed: whether this goes on with a run.
        problem: why something could not be written; None if all was.

    Raises:
        JournalBusy: the run that is to be resumed is still alive.
        JournalMalformed: what is to be resumed is no journal.
        OSError: it cannot be written.
    """

    def __init__(self, directory: Path, *, parameters: str = "", resume: bool | None = False) -> None:
        last = None if resume is False else last_state(directory)
        if last is not None and resume is None and not _began_with(last, parameters):
            last = None
        self._why: str | None = None
        self._rest, self._lost = bytearray(), False
        self.resumed = False
        if last is None:
            state = State(key=uuid.uuid4().hex, parameters=parameters)
            self.path = directory.absolute() / f"tracking-{state.key[:8]}.jsonl"
            keep_state(state, self.path)
        else:
            self.path = last.with_suffix(".jsonl")
            state = state_of(self.path)
        self.key = state.key
        self._file = self._open()
        if last is not None:
            self._go_on(state)

    def _open(self) -> BinaryIO:
        """Open and lock the journal; its last sender may be about to remove it."""
        deadline = time.monotonic() + LOCKING_SECONDS
        while True:
            with suppress(FileExistsError):
                self.path.open("xb").close()
            try:
                file = open_own(self.path, write=True)
            except FileNotFoundError:  # removed in this moment
                continue
            except NotOwnFileError as error:
                raise JournalMalformed(f"it is {error}") from error
            if _try_lock(file, WRITER) and os.fstat(file.fileno()).st_nlink:
                file.seek(0, os.SEEK_END)
                return file
            file.close()
            if time.monotonic() > deadline:
                raise JournalBusy(str(self.path))
            time.sleep(0.02)

    def _go_on(self, state: State) -> None:
        """Go on where the last writer ended, which may be in the middle of a line."""
        size = self._file.seek(0, os.SEEK_END)
        if size == 0 and state.offset:  # all of it was sent
            keep_state(state.model_copy(update={"offset": 0}), self.path)
        self._file.seek(0)
        begun = state.run_id is not None or b"\n" in self._file.read(READING)
        if not begun:  # the very first line was not written to its end: nothing is to go on
            self._file.truncate(0)
            size = 0
        self.resumed = begun
        self._file.seek(max(0, size - 1))
        if size and self._file.read(1) != b"\n":
            self._rest += b"\n"
        self._file.seek(0, os.SEEK_END)

    @property
    def problem(self) -> str | None:
        """Why something could not be written; None if all was."""
        return self._why if self._rest or self._lost else None

    def write(self, kind: str, **content: Any) -> None:
        """Append a record; it is out of this process's hands when the call returns, unless the disk is full."""
        line = json.dumps({"kind": kind, **content}, separators=(",", ":")).encode() + b"\n"
        if kind == "metrics" and (self._lost or len(self._rest) + len(line) > WAITING):
            self._lost = True
        else:
            self._rest += line
        self.flush()

    def flush(self) -> bool:
        """Write what waits in memory for room; return whether all of it is out of this process's hands."""
        try:
            while self._rest:
                del self._rest[: self._file.write(self._rest)]
        except OSError as error:  # a full disk: training goes on
            self._why = f"cannot write {self.path}: {error.strerror}"
        return not self._rest

    def close(self) -> None:
        """Give the journal out of hand."""
        self._file.close()


def last_state(directory: Path) -> Path | None:
    """Return the state of the run that was last tracked from a directory; None if there was none."""
    states = sorted(directory.absolute().glob("tracking-*.json"), key=modified)
    return states[-1] if states else None


def _began_with(state: Path, parameters: str) -> bool:
    """Return whether the run of a state began with parameters of that digest."""
    try:
        return state_of(state.with_suffix(".jsonl")).parameters == parameters
    except JournalMalformed:
        return False


def modified(path: Path) -> int:
    """Return when a file was last written to, in nanoseconds since the epoch; 0 where it is gone."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


class JournalReader:
    """The sender's end of a journal.

    Raises:
        JournalBusy: another process sends it.
        JournalMalformed: it is no file.
        FileNotFoundError: all of it was sent.
        OSError: it cannot be opened for reading and locking.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_own(path, write=True)
        except NotOwnFileError as error:
            raise JournalMalformed(f"it is {error}") from error
        if not _try_lock(self._file, SENDER):
            self._file.close()
            raise JournalBusy(str(path))

    def abandoned(self) -> bool:
        """Return whether its writer has gone."""
        if not _try_lock(self._file, WRITER):
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, WRITER)
        return True

    def written(self) -> tuple[int, int]:
        """Return its size in bytes, and when it was last written to in milliseconds since the epoch."""
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns // 1_000_000

    def records(self, offset: int) -> list[tuple[Record | None, int]]:
        """Return the whole records from `offset` on, of about a megabyte, each with the offset that follows it.

        A line that was cut short when its writer was killed is None. Only a run that goes on can come after it.

        Raises:
            JournalMalformed: a line is something else.
        """
        found: list[tuple[Record | None, int]] = []
        for line in self._lines(offset):
            offset += len(line)
            try:
                record = read_record(line)
            except JournalMalformed as error:
                raise JournalMalformed(f"the line that ends at byte {offset}: {error}") from error
            if found and found[-1][0] is None and not _may_follow(record):
                raise JournalMalformed(f"the line that ends at byte {found[-1][1]} is not JSON")
            found.append((record, offset))
        return found

    def all_records(self, offset: int) -> Iterator[Record | None]:
        """Yield all records from `offset` on, see `records`."""
        while batch := self.records(offset):
            yield from (record for record, _ in batch)
            offset = batch[-1][1]

    def _lines(self, offset: int) -> list[bytes]:
        self._file.seek(offset)
        data = self._file.read(READING)
        while data and b"\n" not in data and (more := self._file.read(READING)):
            data += more
            if len(data) > LONGEST:
                raise JournalMalformed(f"the line after byte {offset} has more than {LONGEST} bytes")
        return [line + b"\n" for line in data.split(b"\n")[:-1]]

    def remove(self) -> None:
        """Remove the journal, all of which was sent, unless its run goes on."""
        if _try_lock(self._file, WRITER):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the journal."""
        self._file.close()


def _may_follow(record: Record | None) -> bool:
    """Return whether a record may stand behind a line that was cut short."""
    match record:
        case None | Resumed():
            return True
        case Ended(status="KILLED"):  # what older versions wrote for a run that was killed
            return True
    return False


def to_number(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinities as words."""
    return value if math.isfinite(value) else str(value)
