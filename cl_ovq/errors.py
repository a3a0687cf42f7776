"""Mistakes of the user: reported in one line, never as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the person at the keyboard can put right.

    The message is one line that names the thing, the valid choices and the nearest match. The command line prints it
    and leaves with exit code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


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
