"""Everything that a configuration can name, by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import starmap
from pathlib import Path
from typing import Any

from cl_ovq.config.load import list_experiments
from cl_ovq.config.parts import default_of, owners
from cl_ovq.config.schema import SCALARS, STREAM_PARTS
from cl_ovq.encoders import ENCODERS
from cl_ovq.errors import UserError
from cl_ovq.metric_names import BETTER, MATRIX_METRICS, title
from cl_ovq.mixers import GROWTHS, MIXERS, RATES, SCOPES
from cl_ovq.models import HEADS, MODELS
from cl_ovq.registry import Registry
from cl_ovq.strategies import AUGMENTATIONS, OPTIMIZERS, SCHEDULES, STRATEGIES
from cl_ovq.studies.files import list_studies
from cl_ovq.studies.published import load_published
from cl_ovq.sweeps.files import list_sweeps


def _experiments() -> dict[str, str]:
    return _first_comments(list_experiments())


def _studies() -> dict[str, str]:
    return _first_comments(list_studies())


def _published() -> dict[str, str]:
    return {
        target.name: f"{target.title}: {target.metric} {target.value}; {target.source}" for target in load_published()
    }


def _sweeps() -> dict[str, str]:
    return _first_comments(list_sweeps())


def _first_comments(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the comment on each file's first line."""
    summaries = {}
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        summaries[name] = first.removeprefix("#").strip() if first.startswith("#") else str(path)
    return summaries


def _keys() -> dict[str, str]:
    """Return every key of the configuration with meaning, choices, default, and the parts that have it."""
    found: dict[str, dict[str, list[str]]] = {field.name: {describe(field): []} for field in SCALARS}
    for owner in owners():
        for field in dataclasses.fields(owner.options):
            texts = found.setdefault(f"{owner.section}.{field.name}", {})
            texts.setdefault(describe(field), []).append(owner.name)
    scalars, names = len(SCALARS), list(found)
    sections = list(dict.fromkeys(key.partition(".")[0] for key in names[scalars:]))
    ordered = names[:scalars] + sorted(names[scalars:], key=lambda key: sections.index(key.partition(".")[0]))
    return {key: " / ".join(starmap(_of, found[key].items())) for key in ordered}


def _of(text: str, names: list[str]) -> str:
    parts = ", ".join(dict.fromkeys(filter(None, names)))
    return f"{text}; for: {parts}" if parts else text


def describe(field: dataclasses.Field[Any]) -> str:
    """Return the meaning of an option, the values that it may have, and its default."""
    limits = field.metadata
    choices = limits.get("choices")
    bounds = {name: limits[name] for name in BOUNDS if name in limits and limits[name] < UNLIMITED}
    range_of = ", ".join(f"{BOUNDS[name]} {bound}" for name, bound in bounds.items())
    valid = f" ({', '.join(choices)})" if choices else f" ({range_of})" if range_of else ""
    default = default_of(field)
    shown = "required" if default is dataclasses.MISSING else f"default {_shown(default)}"
    return f"{limits.get('help', '')}{valid}; {shown}".lstrip("; ")


def _shown(default: Any) -> str:
    """Return a default as a configuration file would have it."""
    if isinstance(default, list):
        return f"[{','.join(map(str, default))}]"
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def options_of(kind: str, name: str) -> dict[str, str]:
    """Return the options of a part by key of the configuration.

    Args:
        kind: of the part, a key of `KINDS`.
        name: of the part.

    Raises:
        UserError: parts of this kind have no options, or none has this name.
    """
    registry = PARTS.get(kind)
    if registry is None:
        raise UserError(f"list: {kind} have no options: kinds with options: {', '.join(PARTS)}")
    registry[name]  # refuses an unknown name
    return {
        f"{owner.section}.{field.name}": describe(field)
        for owner in owners()
        if owner.choice is not None and owner.choice.registry is registry and owner.name == name
        for field in dataclasses.fields(owner.options)
    }


def _summaries(registry: Registry[Any]) -> Callable[[], Mapping[str, str]]:
    return lambda: {name: part.summary for name, part in registry.items()}


def _metrics() -> dict[str, str]:
    ours = {name: f"{title(name)}, {'higher' if sign > 0 else 'lower'} is better" for name, sign in BETTER.items()}
    return {**ours, **_summaries(MATRIX_METRICS)()}


UNLIMITED = 2**24  # a largest value from here on is the machine's limit
BOUNDS = {"minimum": ">=", "exclusive_minimum": ">", "maximum": "<="}
PARTS: dict[str, Registry[Any]] = {
    "streams": STREAM_PARTS,
    "encoders": ENCODERS,
    "models": MODELS,
    "mixers": MIXERS,
    "strategies": STRATEGIES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "augmentations": AUGMENTATIONS,
    "growth": GROWTHS,
    "heads": HEADS,
    "scopes": SCOPES,
    "learning_rates": RATES,
}
KINDS: dict[str, Callable[[], Mapping[str, str]]] = {
    **{kind: _summaries(registry) for kind, registry in PARTS.items()},
    "metrics": _metrics,
    "experiments": _experiments,
    "studies": _studies,
    "published": _published,
    "sweeps": _sweeps,
    "keys": _keys,
}
