"""Named parts that a configuration can ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from cl_ovq.errors import unknown

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name, in the order they were entered.

    Args:
        kind: what the parts are, in the singular (`mixer`); it is used in error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}
        self._summaries: dict[str, str] = {}

    def enter(self, name: str, summary: str) -> Callable[[Part], Part]:
        """Decorate a part to enter it under `name`, with a line that says what it is.

        Raises:
            ValueError: the name is taken.
        """

        def decorate(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"{self.kind} '{name}' is entered twice")
            self._parts[name] = part
            self._summaries[name] = summary
            return part

        return decorate

    def __getitem__(self, name: str) -> Part:
        """Return the part of that name; raise `UserError` naming the nearest and all known names otherwise."""
        if name not in self._parts:
            raise unknown(self.kind, name, self._parts)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def summaries(self) -> dict[str, str]:
        """Return the line that describes each part, by name."""
        return dict(self._summaries)
