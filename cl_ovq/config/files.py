"""YAML files that are no experiments (studies, sweeps): found by path or name, read, and their overrides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_ovq.errors import UserError, nearest


def find_file(kind: str, name: str, known: Mapping[str, Path]) -> Path:
    """Return the file of that path, or the known one of that name.

    Args:
        kind: what it is, for the message.
        name: as given.
        known: files by name.

    Raises:
        UserError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    short = Path(name).stem
    if short in known:
        return known[short]
    raise UserError(
        f"no {kind} '{name}'{nearest(short, known) or ':'} known: {', '.join(known) or 'none'} "
        "(or give the path of a YAML file)"
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return as_mapping(tree, str(path))


def as_mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping with text as keys.

    Raises:
        UserError: it is none; `name` is where it stands.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: '{value}' is not a mapping")
    return {str(key): inner for key, inner in value.items()}


def read_override(override: str, example: str) -> tuple[str, Any]:
    """Return key and YAML value of `key=value`.

    Raises:
        UserError: it is not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override '{override}' is not of the form key=value, e.g. {example}")
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
        return key, tree["value"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"cannot read the override '{override}': {str(error).splitlines()[0]}") from error
