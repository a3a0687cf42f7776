"""Parts from outside: modules and files of the user's own, whose import enters parts into the registries.

Importing runs code. So nothing is imported but what the person names: in a configuration that is given by name, with
`--import`, or in the environment variable `CL_OVQ_IMPORTS`; and the packages that are installed with an entry point of
the group `cl_ovq.parts`. What a file names that came from elsewhere (a result, a checkpoint, a study's experiment) is
never imported because of it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from cl_ovq.errors import UserError, told
from cl_ovq.paths import expanded, is_file

VARIABLE = "CL_OVQ_IMPORTS"  # a JSON list of modules and absolute paths: processes that are started inherit it
GROUP = "cl_ovq.parts"
SUFFIX = ".py"
_DIGESTS: dict[str, str] = {}  # SHA-256 of the file of each import, by its absolute name, as it was when it was run


def import_parts(names: str | Sequence[str], folder: Path | None = None) -> list[str]:
    """Import modules and files now, and in every process that is started from here on.

    Args:
        names: modules (`my_lab.parts`) and files (`./parts.py`), or one of them. What was imported before is not run
            again.
        folder: what a file's path is relative to; the working directory if None.

    Returns:
        The names, files by their absolute paths.

    Raises:
        UserError: there is no such file or module, or it fails when it is imported.
    """
    absolute = []
    for name in [names] if isinstance(names, str) else names:
        found = _absolute(name, folder or Path())
        _import(found, name)
        known = _inherited()
        if found not in known:
            os.environ[VARIABLE] = json.dumps([*known, found])
        absolute.append(found)
    return absolute


def check_imported(names: Sequence[str], folder: Path, file: Path | None = None) -> list[str]:
    """Return the absolute names of imports that a file asks for which the person did not name.

    Args:
        names: as they stand in the file.
        folder: that relative ones begin at.
        file: the file, for the message.

    Raises:
        UserError: one of them is not imported already.
    """
    absolute = [_absolute(name, folder) for name in names]
    if missing := [name for name in absolute if name not in _inherited()]:
        options = " ".join(f"--import {name}" for name in missing)
        by = f"required by {file or 'a configuration'}, which you did not name yourself"
        raise UserError(
            f"imports: {', '.join(missing)}: {by}, and importing runs code: add {options}, or call cl_ovq.import_parts"
        )
    return absolute


def import_inherited() -> None:
    """Import what installed packages enter, and what `CL_OVQ_IMPORTS` names.

    Raises:
        UserError: one of them fails.
    """
    for point in entry_points(group=GROUP):
        _import(point.value.partition(":")[0], f"{GROUP}: {point.name}")
    for name in _inherited():
        _import(_absolute(name, Path()), f"{VARIABLE}: {name}")


def digests() -> dict[str, str]:
    """Return the SHA-256 of the file of each import, as it was when it was run, by absolute name.

    A package of several files counts with its `__init__.py`; what files import in turn does not count.
    """
    return {name: digest for name, digest in _DIGESTS.items() if _module_name(name) in sys.modules}


def with_digests(kept: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the digests that a run was made with, with those of today where they are others.

    Args:
        kept: of each import, in the order of the sessions of the run.
    """
    found = {name: [*before] for name, before in kept.items()}
    for name, digest in digests().items():
        if digest not in found.setdefault(name, []):
            found[name].append(digest)
    return found


def changed(kept: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the imports that are not what a run was made with, as they are called now.

    Args:
        kept: see `with_digests`. A file that lies elsewhere now is known by its last step; what is not imported here
            is not compared.
    """
    here = digests()
    by_last_step = {Path(name).name: name for name in here}
    found = {name if name in here else by_last_step.get(Path(name).name): before for name, before in kept.items()}
    return [name for name, before in found.items() if name is not None and {*before} != {here[name]}]


def stored_hint(imports: object) -> str:
    """Return what to add to the message of a mistake in a stored configuration, which may be that parts are missing."""
    missing = [name for name in imports if name not in _inherited()] if isinstance(imports, list) else []
    named = " ".join(f"--import {name}" for name in missing)
    return f" (it was made with {named}; from Python: cl_ovq.import_parts, or {VARIABLE})" if missing else ""


def as_options() -> list[str]:
    """Return the options of the command line that import here what was imported in this process."""
    return [word for name in _inherited() for word in ("--import", name)]


def _inherited() -> list[str]:
    text = os.environ.get(VARIABLE, "")
    if not text.strip():
        return []
    try:
        names = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
    except ValueError as error:
        raise UserError(f"{VARIABLE}: must be a JSON list of modules and files") from error
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{VARIABLE}: must be a list of modules and files")
    return [name.strip() for name in names if name.strip()]


def _absolute(name: str, folder: Path) -> str:
    """Return a module's name as it is, and a file's as an absolute path."""
    if not name.endswith(SUFFIX) and os.sep not in name:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise UserError(f"imports: '{name}' is neither a module name (my_lab.parts) nor a file (./parts.py)")
        return name
    path = (folder / expanded(name)).resolve()
    if not is_file(path):
        raise UserError(f"imports: there is no file {path}")
    if path.suffix != SUFFIX:
        raise UserError(f"imports: {path} is not a Python file ({SUFFIX})")
    return str(path)


def _import(name: str, given: str) -> None:
    module = _module_name(name)
    if module in sys.modules:
        return
    warnings.filterwarnings("ignore", message="no QP solver found")  # what Avalanche imports says of itself
    try:
        if os.sep not in name:
            file = importlib.import_module(module).__file__
            if file is not None:  # as a namespace has none
                _DIGESTS[name] = _digest(file)
            return
        spec = importlib.util.spec_from_file_location(module, name)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        _DIGESTS[name] = _digest(name)
        sys.modules[module] = made  # before it runs: its dataclasses look themselves up there
        try:
            spec.loader.exec_module(made)
        except BaseException:
            del sys.modules[module]
            raise
    except (Exception, SystemExit) as error:  # of whatever kind: it is their code
        raise UserError(f"imports: {given}: {told(error, module)}") from error


def imported(name: str, key: str) -> ModuleType:
    """Return a module or file of the user's own that was imported because he named it.

    Args:
        name: as in `import_parts`; a file that is not there any more, from this working directory, is known by its last
            step, so that what a run has stored can be read elsewhere.
        key: of the configuration, for the message.

    Raises:
        UserError: it is not imported.
    """
    known = [_absolute(other, Path()) for other in _inherited()]
    path = str(expanded(name).resolve()) if name.endswith(SUFFIX) or os.sep in name else name
    if path not in known and not is_file(Path(path)):
        path = next((other for other in known if os.sep in other and Path(other).name == Path(path).name), path)
    if path not in known:
        raise UserError(f"{key}: '{name}' is not imported, and importing runs code: add --import {name}")
    return sys.modules[_module_name(path)]


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _module_name(name: str) -> str:
    return name if os.sep not in name else f"cl_ovq_parts_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
