"""What a run only ever adds to: one row a line, in a file beside the checkpoint that is appended to.

A line is `[series, number, row]` in JSON: the row of that number, counted from 0, after which the series ends; or
`[series, number]` where it was cut off there and nothing came after. The checkpoint says how many bytes of the file
belong to it, and their checksum. Whatever follows them was written for a checkpoint that did not come about: it is
ignored, and overwritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints.files import read_bytes

NAME = "history.jsonl"
Rows = list[Any]


class History:
    """The history of one run.

    Rows are compared by identity, and only from the end of a series on: a series grows, and may have its last rows
    replaced, but a row that was given is never changed.

    Args:
        folder: of the run.

    Attributes:
        size: bytes that were written.
        rows: the rows that were read, as plain data by series; empty for a new run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.size = 0
        self.rows: dict[str, Rows] = {}
        self._digest = hashlib.sha256()
        self._written: dict[str, Rows] = {}

    @classmethod
    def read(cls, folder: Path, size: int, sha256: str) -> History:
        """Read the history that belongs to a checkpoint.

        Args:
            folder: of the run.
            size: bytes of it.
            sha256: their checksum.

        Raises:
            UserError: the file is missing, shorter, or another one.
        """
        found = cls(folder)
        if size == 0:
            return found
        content = read_bytes(found.path, "the history")[:size]
        found.size = size
        found._digest = hashlib.sha256(content)
        if len(content) < size or found._digest.hexdigest() != sha256:
            raise UserError(f"the history {found.path} is truncated or damaged: it does not match its checkpoint")
        try:
            for line in content.splitlines():
                found._take(*json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"the history {found.path} is damaged: a line is not a valid row") from error
        return found

    def _take(self, name: str, number: int, *row: Any) -> None:
        rows = self.rows.setdefault(name, [])
        if type(number) is not int or not 0 <= number <= len(rows) or len(row) > 1:
            raise ValueError("rows must be consecutive")
        rows[number:] = row

    def hold(self, series: Mapping[str, Rows]) -> None:
        """Take rows as written: those that a run has made of what was read."""
        self._written = {name: list(rows) for name, rows in series.items()}

    def append(self, series: Mapping[str, Rows]) -> dict[str, Any]:
        """Write the rows that are new.

        Args:
            series: all rows by series.

        Returns:
            `size` and `sha256` of the file.

        Raises:
            OSError: they cannot be written; the file is as it was.
        """
        lines, common = [], {}
        for name, rows in series.items():
            written = self._written.setdefault(name, [])
            same = len(written)
            while same and (same > len(rows) or written[same - 1] is not rows[same - 1]):
                same -= 1
            new = [[name, number, row] for number, row in enumerate(rows[same:], same)]
            lines += new or ([[name, same]] if same < len(written) else [])
            common[name] = same
        if lines:
            self._write(
                "".join(json.dumps(line, separators=(",", ":"), default=_plain) + "\n" for line in lines).encode()
            )
            for name, same in common.items():
                self._written[name][same:] = series[name][same:]
        return {"size": self.size, "sha256": self._digest.hexdigest()}

    def _write(self, data: bytes) -> None:
        try:
            with self.path.open("r+b" if self.size else "wb") as file:
                file.truncate(self.size)
                file.seek(self.size)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self.size)
            raise
        self.size += len(data)
        self._digest.update(data)


def _plain(value: Any) -> Any:
    """Return a record or a tensor as JSON can hold it."""
    return value.tolist() if isinstance(value, Tensor) else asdict(value)
