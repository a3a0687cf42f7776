"""YAML files: where they lie, found by path or name, and what is in them. Nothing here knows what they describe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_ovq.errors import UserError, nearest


def shipped_folders(name: str) -> list[Path]:
    """Return the folders of a name that hold files: the working directory's, this checkout's, the installed ones."""
    root = Path(__file__).resolve().parents[2]
    installed = Path("share", "cl-ovq", name)
    # The last two: a folder given to `pip install --target`, and an environment.
    folders = [Path(name), root / name, root / installed, sys.prefix / installed]
    return [folder for folder in folders if folder.is_dir()]


def files_by_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the YAML files right in some folders by name; of one name the first counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_file(kind: str, name: str, known: Mapping[str, Path]) -> Path:
    """Return the file of that path, or the known one of that name.

    Args:
        kind: what it is, for the message.
        name: as given.
        known: files by name.

    Raises:
        UserError: there is none.
    """
    if is_file(Path(name)):
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
        with path.open(encoding="utf-8") as file:
            loaded = OmegaConf.load(file)
    except AssertionError as error:  # OmegaConf, of a document that is a text which reads as a number
        raise UserError(f"{path} holds no mapping, but a text") from error
    except OSError as error:  # OmegaConf raises it, without a number, for a document that is no mapping or list
        problem = f"cannot be read: {error.strerror}" if error.errno else f"holds no mapping: {first_line(error)}"
        raise UserError(f"{path} {problem}") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {first_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path} holds no mapping of keys to values")
    return as_mapping(OmegaConf.to_container(loaded), str(path))


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
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read the override '{override}': {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return what an error says in one line; of YAML's all lines joined, since the first says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, yaml.YAMLError):
        return " ".join(lines)
    return lines[0] if lines else type(error).__name__
