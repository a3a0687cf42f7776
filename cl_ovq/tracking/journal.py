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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

WRITER, SENDER = 0, 1  # the bytes of the file that are locked
PATTERN = "tracking-*.jsonl"
LOCKING_SECONDS = 2.0


class JournalBusy(Exception):
    """Another process holds the journal."""


def _try_lock(file: BinaryIO, byte: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except OSError:
        return False
    return True


class JournalWriter:
    """The run's end of a journal.

    Args:
        directory: of the run.
        resume: whether to go on with the directory's last journal; otherwise it is a new one.

    Attributes:
        path: of the journal.
        key: names the run wherever it is kept, before and after MLflow gave it an id.
        resumed: whether this goes on with a run.
        problem: why something could not be written; None if all was.

    Raises:
        JournalBusy: the run that is to be resumed is still alive.
    """

    def __init__(self, directory: Path, *, resume: bool = False) -> None:
        last = last_state(directory) if resume else None
        self.problem: str | None = None
        self.resumed = last is not None
        if last is None:
            self.key = uuid.uuid4().hex
            self.path = directory.absolute() / f"tracking-{self.key[:8]}.jsonl"
            state = State(key=self.key)
            state.write(self.path)
        else:
            self.path = last.with_suffix(".jsonl")
            state = State.read(self.path)
            self.key = state.key
            if not self.path.exists():  # all of it was sent
                state.offset = 0
                state.write(self.path)
        self._file = self._open()
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":  # the last writer was killed in the middle of a line
                self._file.write(b"\n")

    def _open(self) -> BinaryIO:
        """Open and lock the journal; its last sender may be about to remove it."""
        deadline = time.monotonic() + LOCKING_SECONDS
        while True:
            file = self.path.open("a+b", buffering=0)
            if _try_lock(file, WRITER) and os.fstat(file.fileno()).st_nlink:
                return file
            file.close()
            if time.monotonic() > deadline:
                raise JournalBusy(str(self.path))
            time.sleep(0.02)

    def write(self, kind: str, **content: Any) -> None:
        """Append a record; it is out of this process's hands when the call returns."""
        try:
            self._file.write(json.dumps({"kind": kind, **content}, separators=(",", ":")).encode() + b"\n")
        except OSError as error:  # a full disk: training goes on
            self.problem = self.problem or f"cannot write {self.path}: {error.strerror}"

    def close(self) -> None:
        """Give the journal out of hand."""
        self._file.close()


def last_state(directory: Path) -> Path | None:
    """Return the state of the run that was last tracked from a directory; None if there was none."""
    states = sorted(directory.absolute().glob("tracking-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return states[-1] if states else None


@dataclass
class State:
    """How far a journal was sent.

    Attributes:
        key: of the run.
        run_id: MLflow's id of the run; None before it has one.
        experiment_id: MLflow's id of the experiment.
        offset: bytes of the journal that were sent.
        attempted: whether the run may exist in MLflow although its id is not known here.
        last_steps: the last step sent of each metric.
        resumed_at: the last step of each metric when the run was resumed: what comes again is not sent again.
        ended: whether MLflow knows that the run has ended.
        refused: what MLflow refused for good, in words.
    """

    key: str
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    attempted: bool = False
    last_steps: dict[str, int] = field(default_factory=dict)
    resumed_at: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    refused: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, journal: Path) -> State:
        """Read the state that lies beside a journal."""
        return cls(**json.loads(journal.with_suffix(".json").read_text(encoding="utf-8")))

    def write(self, journal: Path) -> None:
        """Write the state beside a journal, whole or not at all."""
        path = journal.with_suffix(".json")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        temporary.replace(path)


class JournalReader:
    """The sender's end of a journal.

    Raises:
        JournalBusy: another process sends it.
        FileNotFoundError: all of it was sent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("r+b", buffering=0)
        if not _try_lock(self._file, SENDER):
            self._file.close()
            raise JournalBusy(str(path))

    def abandoned(self) -> bool:
        """Return whether its writer has gone."""
        if not _try_lock(self._file, WRITER):
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, WRITER)
        return True

    def records(self, offset: int, limit: int | None = None) -> list[tuple[dict[str, Any], int]]:
        """Return the whole records from `offset` on, of about `limit` bytes, each with the offset that follows it."""
        self._file.seek(offset)
        data = self._file.read(-1 if limit is None else limit)
        while limit is not None and data and b"\n" not in data and (more := self._file.read(limit)):
            data += more
        found = []
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            try:
                found.append((json.loads(line), offset))
            except json.JSONDecodeError:  # a line that was cut short when its writer was killed
                found.append(({"kind": "nothing"}, offset))
        return found

    def append(self, kind: str, **content: Any) -> None:
        """Append a record for a writer that has gone."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - 1))
        whole = size == 0 or self._file.read(1) == b"\n"
        self._file.write((b"" if whole else b"\n") + json.dumps({"kind": kind, **content}).encode() + b"\n")

    def remove(self) -> None:
        """Remove the journal, all of which was sent, unless its run goes on."""
        if _try_lock(self._file, WRITER):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the journal."""
        self._file.close()


def to_number(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinities as words."""
    return value if math.isfinite(value) else str(value)
