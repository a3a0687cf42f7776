"""YAML files: where they lie, found by path or name, and what is in them. Nothing here knows what they describe."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cl_ovq.config.reading import IsText, read_yaml, yaml_line
from cl_ovq.errors import UserError, nearest
from cl_ovq.paths import is_file

LARGEST = 1 << 20  # bytes


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


def read_mapping(path: Path, is_text: IsText, *, shown: bool = True) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty one holds an empty mapping.

    Args:
        path: of the file.
        is_text: which places in it hold text, see `read_yaml`.
        shown: whether a message may say what is wrong in its content.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path} has more than {LARGEST} bytes: too large for a configuration")
        # As a stream: of a text PyYAML would show the line.
        loaded = read_yaml(io.StringIO(content.decode()), is_text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = yaml_line(error) if shown else "another file names it, so its content is not shown"
        raise UserError(f"{path} is not valid YAML: {reason}") from (error if shown else None)
    if loaded is not None and not isinstance(loaded, dict):
        raise UserError(f"{path} does not contain a mapping of keys to values")
    return loaded or {}


def as_mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping with text as keys.

    Raises:
        UserError: it is none; `name` is where it stands.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: '{value}' is not a mapping")
    return {str(key): inner for key, inner in value.items()}
