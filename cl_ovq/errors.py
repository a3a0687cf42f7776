"""Mistakes of the user: reported in one line, never as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from cl_ovq.uris import redact_all


class UserError(Exception):
    """Something the person at the keyboard can put right.

    The message is one line that names the thing, the valid choices and the nearest match, without the secrets of any
    address in it. The command line prints it and leaves with exit code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact_all(printable(" ".join(message.splitlines()))))


def printable(text: str) -> str:
    """Return a text without what a terminal obeys, such as escape sequences in the names that somebody else gave."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


class UnwrittenError(UserError):
    """A file cannot be written, since the disk is full for example. The command line leaves with exit code 1.

    Attributes:
        content: what would be lost with it, and is therefore printed; None for what can be made again.
    """

    def __init__(self, message: str, content: str | None = None) -> None:
        super().__init__(message)
        self.content = content


def first_line(error: BaseException) -> str:
    """Return what an error says in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `: did you mean 'X'?` for the closest known name, or an empty string when nothing is close.

    Args:
        name: what was given.
        known: the valid names.
        prefix: stands before the name in the question, and plays no part in the comparison.
    """
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f": did you mean '{prefix}{matches[0]}'?" if matches else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not among the known ones of its kind.

    Args:
        kind: what the name should have been, e.g. `mixer`.
        name: the name that was given.
        known: the valid names.
    """
    names = sorted(known)
    hint = nearest(name, names) or ":"
    return UserError(f"unknown {kind} '{name}'{hint} known: {', '.join(names)}")
