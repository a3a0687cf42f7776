"""Everything that a configuration can name, by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cl_ovq.config.load import SCALARS, SECTIONS, list_experiments
from cl_ovq.learning import OPTIMIZERS, STRATEGIES
from cl_ovq.mixers import MIXERS
from cl_ovq.models import MODELS
from cl_ovq.studies.files import list_studies
from cl_ovq.studies.published import load_published
from cl_ovq.sweeps.files import list_sweeps
from kernels import GROWTH
from streams import STREAMS


def _streams() -> dict[str, str]:
    """Return every stream with one line, then its options with their defaults; `keys` says what they mean."""
    return {name: f"{entry.summary}\n{_options(entry.Options)}" for name, entry in STREAMS.items()}


def _options(cls: type) -> str:
    return " ".join(f"{field.name}={_default(field)}" for field in dataclasses.fields(cls))


def _growth() -> dict[str, str]:
    return {name: (schedule.__doc__ or "").strip().splitlines()[0] for name, schedule in GROWTH.items()}


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
    """Return every key of the configuration with meaning, choices and default; a stream's own by its name."""
    sections: dict[str, Any] = dict(SECTIONS) | {f"stream ({name})": entry.Options for name, entry in STREAMS.items()}
    keys = {field.name: field for field in SCALARS}
    keys |= {f"{section}.{field.name}": field for section, cls in sections.items() for field in dataclasses.fields(cls)}
    return {name: _describe(field) for name, field in keys.items()}


def _describe(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata.get("choices")
    listed = f" ({', '.join(choices)})" if choices else ""
    return f"{field.metadata['help']}{listed}; default {_default(field)}"


def _default(field: dataclasses.Field[Any]) -> str:
    """Return a field's default as a configuration file would have it."""
    if field.default_factory is not dataclasses.MISSING:
        default: Any = field.default_factory()
    else:
        default = field.default
    if isinstance(default, list):
        return f"[{','.join(map(str, default))}]"
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


KINDS: dict[str, Callable[[], Mapping[str, str]]] = {
    "streams": _streams,
    "models": MODELS.summaries,
    "mixers": MIXERS.summaries,
    "growth": _growth,
    "strategies": STRATEGIES.summaries,
    "optimizers": OPTIMIZERS.summaries,
    "experiments": _experiments,
    "studies": _studies,
    "published": _published,
    "sweeps": _sweeps,
    "keys": _keys,
}
