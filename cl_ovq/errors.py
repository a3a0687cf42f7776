"""Mistakes of the user: reported in one line, never as a traceback."""

from __future__ import annotations

import difflib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cl_ovq.uris import redact_all

OURS = ("cl_ovq", "streams", "kernels")
MOST_NAMES = 40  # of a kind that a message lists
Made = TypeVar("Made")


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


def is_foreign(code: Any) -> bool:
    """Return whether a function or class is not this project's; a partial call is its function's."""
    return _package(code) not in OURS


def called(what: str, function: Callable[..., Made], *arguments: Any) -> Made:
    """Call the builder of a part, which may be the user's own.

    Args:
        what: names the part.
        function: where it is ours, what it raises is a fault of ours, and stays what it is.
        arguments: that it takes.

    Raises:
        UserError: it is the user's own, and fails.
    """
    if not is_foreign(function):
        return function(*arguments)
    with own_code(what, function):
        return function(*arguments)


def check_built(what: str, found: object, kind: type | tuple[type, ...], words: str) -> None:
    """Refuse what a builder made if it is something else.

    Args:
        what: names the part.
        found: what was made.
        kind: that it must be of; `type(None)` for nothing.
        words: what that is called.

    Raises:
        UserError: it is of another kind.
    """
    if not isinstance(found, kind):
        raise UserError(f"{what} is built as a {type(found).__name__}, but must be {words}")


@contextmanager
def own_code(what: str, code: Any) -> Iterator[None]:
    """Tell in a line what the user's own code raises in the `with` block; a `UserError` is told already.

    Args:
        what: names what fails.
        code: that is called: a function, class or object.

    Raises:
        UserError: naming the error, and the place in his code that it was raised in or called from.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whatever kind: it is his code
        raise UserError(f"{what}: {told(error, code)}") from error


def told(error: BaseException, code: Any) -> str:
    """Return what the user's own code raised: kind, first line, and the last place in that code, where there is one.

    Args:
        error: the exception.
        code: that was called, or the name of the module that was imported. Code beside it counts as well; libraries
            and this project do not.
    """
    kind, line, own = type(error).__name__, first_line(error), _package(code)
    found = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        file, package = frame.f_code.co_filename, str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in OURS and (package == own or not _is_library(file)):
            found = f"{file}, line {number}"
    if found is None and own not in OURS and (known := _code_of(code)) is not None:  # it was called wrongly
        found = f"{known.co_filename}, line {known.co_firstlineno}"
    return (kind if line == kind else f"{kind}: {line}") + (f" ({found})" if found else "")


def _package(code: Any) -> str:
    if isinstance(code, str):
        return code.partition(".")[0]
    while isinstance(code, partial):
        code = code.func
    return str(getattr(code, "__module__", None) or type(code).__module__).partition(".")[0]


def _is_library(file: str) -> bool:
    paths = sysconfig.get_paths()
    return file.startswith("<") or any(
        Path(file).is_relative_to(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )


def _code_of(code: Any) -> Any:
    """Return the code object of a function, or of a class's own `__init__` or first method; None where it has none."""
    while isinstance(code, partial):
        code = code.func
    code = inspect.unwrap(code) if callable(code) else code
    if hasattr(code, "__code__"):
        return code.__code__
    own = vars(code if isinstance(code, type) else type(code))
    methods = [found for found in (own.get("__init__"), *own.values()) if hasattr(found, "__code__")]
    return methods[0].__code__ if methods else None


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
    listed, more = names, ""
    if len(names) > MOST_NAMES:  # the nearest would be lost among them
        near = set(difflib.get_close_matches(name.lower(), names, n=MOST_NAMES, cutoff=0.3)) or set(names[:MOST_NAMES])
        listed, more = [one for one in names if one in near], f" and {len(names) - len(near)} more"
    return UserError(f"unknown {kind} '{name}'{hint} known: {', '.join(listed)}{more}")
