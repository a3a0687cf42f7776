"""Which options a configuration has: those of its sections, and of the parts that it names.

A section's dataclass is made of the common one of the section and of the options of every part that the section names,
by inheritance: with `strategy.name: der` the section `strategy` is a `StrategyConfig` and a `DEROptions`, and
`config.strategy.alpha` is an attribute like any other. A part may also open a section of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

from cl_ovq.config.check import check_type, hints_of, is_optional
from cl_ovq.config.environment import REFERENCE
from cl_ovq.config.renamed import renamed
from cl_ovq.config.schema import SECTIONS, ExperimentConfig
from cl_ovq.errors import UserError
from cl_ovq.registry import Registry
from streams import STREAMS

ORDER = [field.name for field in dataclasses.fields(ExperimentConfig)]


class Choice(NamedTuple):
    """A field that names a part, or several.

    Attributes:
        section: of the field.
        field: its name.
        registry: of the parts.
        names: of the parts that it names.
    """

    section: str
    field: str
    registry: Registry[Any]
    names: list[str]


class Owner(NamedTuple):
    """A dataclass whose fields a section may have.

    Attributes:
        section: the section.
        options: the dataclass.
        choice: the field that names the part whose options these are; None for what the section always has.
        name: of that part.
    """

    section: str
    options: type
    choice: Choice | None = None
    name: str = ""


class UnusedKeyError(UserError):
    """A key of the configuration that the chosen part does not have, and others do.

    Attributes:
        key: the dotted key.
        choice: the dotted key that names the part.
        having: the names of the parts that have it.
    """

    def __init__(self, key: str, choice: Choice, having: list[str]) -> None:
        names = "', '".join(choice.names)
        verb = "do" if len(choice.names) > 1 else "does"
        who = (
            f"'{names}' {verb} not use it"
            if choice.names
            else f"{choice.section}.{choice.field} names none that uses it"
        )
        super().__init__(f"{key}: {who}: {choice.registry.plural} that do: {', '.join(sorted(having))}")
        self.key = key
        self.choice = f"{choice.section}.{choice.field}"
        self.having = having


def schema_of(tree: Mapping[str, Any]) -> dict[str, type]:
    """Return the dataclass of every section of a configuration, by the parts that it names.

    Args:
        tree: nested mappings as read from YAML; what it does not name is at its default.

    Raises:
        UserError: a name is unknown or missing, a section is no mapping, or two parts have options of one name.
    """
    bases: dict[str, list[type]] = {section: [cls] for section, cls in SECTIONS.items()}
    for choice in _choices(tree):
        for part in map(choice.registry.__getitem__, choice.names):
            for section, options in _joining(choice.section, part):
                if options not in bases.setdefault(section, []):
                    bases[section].append(options)
    return {section: _composed(section, bases[section]) for section in ORDER if section in bases}


def _composed(section: str, bases: list[type]) -> type:
    try:
        return compose(*bases)
    except TypeError as error:
        raise UserError(f"{section}.{error}: rename one of them") from error


def owners() -> list[Owner]:
    """Return every dataclass that a section may be made of, over all parts of all registries."""
    streams = tuple((name, entry.Options) for name, entry in STREAMS.items())
    return _owners(Registry.revision, streams)


def unused(key: str, tree: Mapping[str, Any]) -> UnusedKeyError | None:
    """Return the mistake of a key that the parts named by a configuration do not have; None if no part has it.

    Args:
        key: `section.name`.
        tree: the configuration.
    """
    section, name = key.split(".", 1)
    having = [owner for owner in owners() if owner.section == section and name in _names(owner.options)]
    if not having:
        return None
    choices = list(_choices(tree))
    if section not in schema_of(tree):  # then what matters is who opens it
        opening = (owner for owner in owners() if owner.section == section and _reaches(owner.options, name))
        having = [owner for owner in opening if owner.choice is not None and owner.choice.section != section]
    for _ in ORDER:
        for choice in choices:
            same = (owner for owner in having if owner.choice is not None and owner.choice.section == choice.section)
            found = [owner for owner in same if owner.choice and owner.choice.registry is choice.registry]
            if found:
                return UnusedKeyError(key, choice, list(dict.fromkeys(owner.name for owner in found)))
        # The choice itself is one that the named parts do not have: those that do are what is to be named.
        fields = {(owner.choice.section, owner.choice.field) for owner in having if owner.choice is not None}
        having = [
            owner for owner in owners() if any(owner.section == s and f in _names(owner.options) for s, f in fields)
        ]
    return None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default; `MISSING` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@cache
def compose(*bases: type) -> type:
    """Return one dataclass with the fields of several; what another one inherits from is left out.

    Raises:
        TypeError: two of them have different fields of one name.
    """
    leaves = [base for base in bases if not any(other is not base and issubclass(other, base) for other in bases)]
    if len(leaves) == 1:
        return leaves[0]
    # Reversed, since a dataclass lists the fields of its last base first.
    made: Any = dataclasses.dataclass(type(bases[0].__name__, tuple(reversed(leaves)), {"__reduce__": _reduce}))
    made.bases = bases
    for base in leaves:
        for field in dataclasses.fields(base):
            if made.__dataclass_fields__[field.name] is not field:
                raise TypeError(f"{field.name}: another part used with it has a different '{field.name}'")
    return made


def _reduce(self: Any) -> tuple[Any, ...]:
    """Say how to pickle an instance of a composed dataclass, which has no module."""
    return _rebuild, (type(self).bases, vars(self))


def _rebuild(bases: tuple[type, ...], values: dict[str, Any]) -> Any:
    made: Any = object.__new__(compose(*bases))
    made.__dict__.update(values)
    return made


def _choices(tree: Mapping[str, Any]) -> Iterator[Choice]:
    """Yield every field in force that names parts; those of parts come after those that name these."""
    for section, given in tree.items():
        if section in _sections() and not isinstance(given, Mapping | None):
            raise UserError(
                f"{section}: '{given}' is not a section: write {section}.name={given}, or set another of its keys"
            )
    waiting = list(SECTIONS.items())
    for section, options in waiting:  # it grows
        given = tree.get(section) or {}
        fields = {field.name: field for field in dataclasses.fields(options)}
        replaced = {field.metadata.get("replaces") for field in fields.values() if given.get(field.name)}
        for field in fields.values():
            if "parts" not in field.metadata:
                continue
            names = _named(section, field, options, tree)
            choice = Choice(section, field.name, field.metadata["parts"], names)
            for name in names:
                try:
                    part = choice.registry[name]
                except UserError as error:
                    raise UserError(f"{section}.{field.name}: {error}") from error
                if field.name not in replaced:
                    waiting += [joining for joining in _joining(section, part) if joining not in waiting]
            if (names or isinstance(default_of(field), list)) and field.name not in replaced:
                yield choice


def _named(section: str, field: dataclasses.Field[Any], options: type, tree: Mapping[str, Any]) -> list[str]:
    """Return the names that a field gives, or its default."""
    key = f"{section}.{field.name}"
    value = _followed((tree.get(section) or {}).get(field.name), tree)
    if value is None:
        value = default_of(field)
    if value is dataclasses.MISSING:
        raise UserError(f"{key} is missing: known: {', '.join(sorted(field.metadata['parts']))}")
    check_type(key, value, hints_of(options)[field.name])
    if value is None:
        return []
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _followed(value: Any, tree: Mapping[str, Any]) -> Any:
    """Return what a value refers to, where that is another key that is given; the value itself otherwise."""
    for _ in ORDER:
        if not isinstance(value, str) or (reference := REFERENCE.fullmatch(value)) is None:
            break
        found: Any = tree
        for step in reference[1].split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
        if found is None:
            break
        value = found
    return value


def _joining(section: str, part: Any) -> list[tuple[str, type]]:
    """Return the dataclasses that a part adds, each with the section that it adds it to."""
    return [(section, part.Options), *getattr(part, "sections", {}).items()]


@lru_cache(maxsize=8)
def _owners(revision: int, streams: tuple[tuple[str, type], ...]) -> list[Owner]:
    """Return the owners as they are while the parts of the registries, and the streams, are these."""
    found = [Owner(section, cls) for section, cls in SECTIONS.items()]
    for section, options, *_ in found:  # it grows
        for field in dataclasses.fields(options):
            if "parts" not in field.metadata:
                continue
            choice = Choice(section, field.name, field.metadata["parts"], [])
            for name, part in choice.registry.items():
                for other, joined in _joining(section, part):
                    owner = Owner(other, joined, choice, name)
                    if owner not in found:
                        found.append(owner)
    return found


def _sections() -> set[str]:
    return {owner.section for owner in owners()}


def _reaches(options: type, name: str) -> bool:
    """Return whether a dataclass has a field of that name, or a part that it can name."""
    registries = (field.metadata["parts"] for field in dataclasses.fields(options) if "parts" in field.metadata)
    parts = (part for registry in registries for part in registry.values())
    return name in _names(options) or any(_reaches(part.Options, name) for part in parts)


@cache
def _names(options: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(options))


def current(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration as it would be stored today: with today's keys, and only those its parts use.

    A null where no null may be is left out too: it stood for a default that depended on the part. A configuration that
    names a part which is not there stays as it is.
    """
    kept = renamed(tree)
    try:
        schema = schema_of(kept)
    except UserError:
        return kept
    for section in {owner.section for owner in owners()}:
        given = kept.get(section)
        if section not in schema:
            kept.pop(section, None)
        elif isinstance(given, Mapping):
            kept[section] = dict(_fitting(section, given, schema[section]))
    return kept


def _fitting(section: str, given: Mapping[str, Any], cls: type) -> Iterable[tuple[str, Any]]:
    """Yield the values of a section that its dataclass has a place for, and those that no part has."""
    hints = hints_of(cls)
    known = frozenset().union(*(_names(owner.options) for owner in owners() if owner.section == section))
    for key, value in given.items():
        if key in _names(cls):
            if value is not None or is_optional(hints[key]):
                yield key, value
        elif key not in known:
            yield key, value
