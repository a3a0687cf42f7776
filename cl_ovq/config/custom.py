"""Parts of an experiment that are objects, given from Python: its configuration says which they were, not what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_ovq.errors import UserError

CUSTOM = "custom"  # name of such a part
LENT: set[str] = set()  # the sections, `model` or `stream`, whose objects are at hand, see `runs.given`


def check_custom(section: str, values: Any) -> None:
    """Refuse a part that was given from Python and is not at hand now.

    Args:
        section: `model` or `stream`.
        values: of that section; what is no mapping is left to other checks.

    Raises:
        UserError: naming the object, and the way to give it again.
    """
    if isinstance(values, Mapping) and values.get("name") == CUSTOM and section not in LENT:
        source = f"{values['source']}, " if values.get("source") else ""
        raise UserError(
            f"{section}: {source}passed from Python as an object, is not in a file: pass it again from Python, "
            f"as cl_ovq.run(..., {section}=...) or cl_ovq.evaluate(..., {section}=...)"
        )
