"""Named parts that a configuration can ask for, each with its options.

A new part is a builder with a decorator:

    @dataclass
    class NoisyOptions:
        noise: float = option(0.1, "standard deviation of the noise on gradients", minimum=0)

    @STRATEGIES.enter("noisy", "fine-tuning on noisy gradients", options=NoisyOptions)
    def build(options: NoisyOptions, context: Context) -> SupervisedTemplate:
        return context.naive(GradientNoise(options.noise))
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cl_ovq.errors import is_foreign, unknown
from cl_ovq.options import NoOptions, check_options

Builder = TypeVar("Builder")
PartT = TypeVar("PartT", bound="Part[Any]")
SECTIONS = ("dictionary", "memory", "learner")  # that parts open


@dataclass(frozen=True, kw_only=True)
class Part(Generic[Builder]):
    """A part of a registry. A kind of part with further facts subclasses this.

    Attributes:
        summary: one line for listings.
        build: makes the part from its options; what else it is given depends on the kind.
        Options: dataclass of its options (`cl_ovq.options.option`).
        sections: further sections that a configuration with this part has, and the dataclass of each.
    """

    summary: str
    build: Builder
    Options: type = NoOptions
    sections: Mapping[str, type] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked of a part before anything uses it."""
        for options in (self.Options, *self.sections.values()):
            check_options(options)
        if unknown_sections := [section for section in self.sections if section not in SECTIONS]:
            raise ValueError(
                f"sections: a configuration has no section '{unknown_sections[0]}' that a part may open: known: "
                f"{', '.join(SECTIONS)}: name the dataclass by options= instead"
            )

    @property
    def foreign(self) -> bool:
        """Whether its builder is not this project's."""
        return is_foreign(self.build)


class Registry(Mapping[str, PartT], Generic[PartT]):
    """The parts of one kind by name, in the order they were entered.

    Args:
        kind: what the parts are, in the singular (`mixer`), for messages.
        part: the dataclass of an entry, whose further fields are the facts that a part states.
        plural: of `kind`; it with an `s` if None.
        taken: names that mean something already, though no part has them.
    """

    revision = 0  # counts the parts of all registries, for what is derived from them

    def __init__(self, kind: str, part: type[PartT], plural: str | None = None, *, taken: Container[str] = ()) -> None:
        self.kind = kind
        self.plural = plural or f"{kind}s"
        self._part = part
        self._taken = taken
        self._parts: dict[str, PartT] = {}

    @classmethod
    def over(cls, kind: str, parts: dict[str, Any]) -> Registry[Any]:
        """Return a registry of parts that are entered elsewhere, each with `summary` and `Options`."""
        registry: Registry[Any] = Registry(kind, Part)
        registry._parts = parts
        return registry

    def enter(
        self, name: str, summary: str, *, options: type = NoOptions, **facts: Any
    ) -> Callable[[Builder], Builder]:
        """Decorate a builder to enter it under a name.

        Args:
            name: what a configuration calls the part.
            summary: one line that says what it is.
            options: dataclass of the part's options.
            facts: further fields of this registry's entries.

        Raises:
            ValueError: the name is taken, or a section that it opens is none.
            TypeError: parts of this kind state no such fact, or the options are none.
        """

        def decorate(build: Builder) -> Builder:
            if name in self._parts or name in self._taken:
                raise ValueError(f"there is a {self.kind} '{name}' already: register yours under another name")
            self._parts[name] = self._part(summary=summary, build=build, Options=options, **facts)
            Registry.revision += 1
            return build

        return decorate

    def add(self, name: str, summary: str, *, build: Any, options: type = NoOptions, **facts: Any) -> None:
        """Enter a part whose builder is at hand, or that there is nothing to build of; see `enter`."""
        self.enter(name, summary, options=options, **facts)(build)

    @contextmanager
    def lent(self, name: str, summary: str, *, build: Any, options: type = NoOptions, **facts: Any) -> Iterator[None]:
        """Enter a part for as long as the `with` block; see `add`."""
        self.add(name, summary, build=build, options=options, **facts)
        try:
            yield
        finally:
            del self._parts[name]
            Registry.revision += 1

    def __getitem__(self, name: str) -> PartT:
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

    def having(self, fact: Callable[[PartT], bool]) -> list[str]:
        """Return the names of the parts that a fact holds for."""
        return [name for name, part in self._parts.items() if fact(part)]
