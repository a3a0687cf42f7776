"""The records of a part: a file of one JSON object a line, which a killed process leaves readable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def path_of(output: Path, part: str) -> Path:
    """The file of a part."""
    return output / f"{part}.jsonl"


def append(path: Path, **record: Any) -> None:
    """Add a record, on a line of its own even if the last one was torn."""
    torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(record) + "\n")


def write(path: Path, records: Iterable[Record]) -> None:
    """Replace the file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read(path: Path) -> list[Record]:
    """All whole records; lines that are none are passed over."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def ended(records: Iterable[Record]) -> dict[str, Record]:
    """The last record of every item that came to an end, by name."""
    return {record["item"]: record for record in records if "ok" in record and "item" in record}


def result_of(record: Record) -> dict[str, Any]:
    """What an item found; nothing if it failed."""
    found = record.get("result")
    return found if isinstance(found, dict) else {}


def is_right(record: Record) -> bool:
    """Whether a record tells of no failure and no wrong result."""
    failed = "error" in record or record.get("ok") is False or record.get("outcome") == "failed"
    return not failed and bool(result_of(record).get("right", True))


def is_done(records: Iterable[Record]) -> bool:
    """Whether the part came to its end."""
    return any(record.get("done") for record in records)


def in_flight(records: Iterable[Record]) -> str | None:
    """The item that was begun last and has not ended."""
    name = None
    for record in records:
        if "begun" in record:
            name = record.get("item")
        elif "ok" in record and record.get("item") == name:
            name = None
    return name
