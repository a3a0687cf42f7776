"""Continual-learning experiments with online vector-quantized attention.

From Python: `run`, `evaluate`, `audit`, `compare`, `sweep`, `study` and `load` do what the commands of these names do,
see `cl_ovq.api`; `writing` is for training loops of one's own. They are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cl_ovq.packages import check_packages

if TYPE_CHECKING:
    from cl_ovq.api import audit, compare, evaluate, load, run, study, sweep
    from cl_ovq.errors import UserError
    from cl_ovq.imports import import_parts
    from cl_ovq.mixers import writing
    from cl_ovq.runs.result import Result
    from streams import Stream

__version__ = "0.1.0"

__all__ = [
    "Result",
    "Stream",
    "UserError",
    "audit",
    "compare",
    "evaluate",
    "import_parts",
    "load",
    "run",
    "study",
    "sweep",
    "writing",
]

_HOMES = {
    **dict.fromkeys(("audit", "compare", "evaluate", "load", "run", "study", "sweep"), "cl_ovq.api"),
    "Result": "cl_ovq.runs.result",
    "Stream": "streams",
    "UserError": "cl_ovq.errors",
    "import_parts": "cl_ovq.imports",
    "writing": "cl_ovq.mixers",
}

check_packages()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
