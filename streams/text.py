"""`text`: language modelling over bytes, an experience a domain: files of the user, or what a Python installation has.

The default domains need no download: source code of the standard library, descriptions of the installed packages, their
licences, and C headers of NumPy and PyTorch. What they say depends on what is installed: a result carries checksums.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.files import named_path, read_data
from streams.options import blur_option, count_option

if TYPE_CHECKING:
    from streams.stream import Stream

DOMAINS = ("source", "descriptions", "licences", "headers")


@dataclass
class TextOptions:
    """Language modelling over bytes."""

    data: list[str] | None = field(
        default=None,
        metadata={"help": "text files or folders, one per experience; files of the Python installation if null"},
    )
    domains: list[str] | None = field(
        default=None, metadata={"help": f"domains in stream order, if data is null: {', '.join(DOMAINS)}; all if null"}
    )
    length: int = count_option(256, "bytes per window")
    train: int = count_option(1000, "maximum training windows per experience")
    validation: int = count_option(100, "maximum validation windows per experience; 0: no validation stream", minimum=0)
    test: int = count_option(100, "maximum test windows per experience")
    limit: int = count_option(2_000_000, "maximum bytes read per domain")
    blur: float = blur_option()


def build_text(options: TextOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: a path or domain that there is not, or too little text.
    """
    from streams.corpus import build_byte_stream, cut

    fraction = 0.1 if options.validation else 0.0
    if options.data is not None:
        if options.domains is not None:
            raise StreamDataError(
                "domains: cannot be combined with data, where each file or folder is a domain: remove one of them"
            )
        found = [(Path(path).name or path, given_files(path)) for path in options.data]
        source = "stream.data"
    else:
        names = list(DOMAINS) if options.domains is None else options.domains
        for name in names:
            if name not in DOMAINS:
                raise StreamDataError(f"domains: unknown domain '{name}': choose from {', '.join(DOMAINS)}")
        found = [(name, installed_files(name)) for name in names]
        source = f"Python installation at {sysconfig.get_path('purelib')}"
    if not found:
        raise StreamDataError("data and domains: give at least one domain")
    if len({name for name, _ in found}) < len(found):
        raise StreamDataError(f"data and domains: duplicate domain names: {', '.join(name for name, _ in found)}")
    domains = [
        cut(name, (read_data(path) for path in files), validation_fraction=fraction, limit=options.limit)
        for name, files in found
    ]
    return build_byte_stream("text", domains, options, source, seed=seed)


def given_files(path: str) -> list[Path]:
    """Returns a file, or all files under a folder, in an order that has nothing to do with their names.

    Raises:
        StreamDataError: there is none.
    """
    root = named_path(path, "data")
    if root.is_file():
        return [root]
    files = [file for file in root.rglob("*") if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise StreamDataError(f"data: '{path}' is neither a file nor a folder with files")
    return _shuffled(root, files)


def installed_files(domain: str) -> list[Path]:
    """Returns the files of a default domain, in an order that has nothing to do with their names.

    Raises:
        StreamDataError: there are none.
    """
    packages, library = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))
    roots: dict[str, list[tuple[Path, Iterator[Path]]]] = {
        "source": [(library, (file for file in library.rglob("*.py") if "site-packages" not in file.parts))],
        "descriptions": [(packages, packages.glob("*.dist-info/METADATA"))],
        "licences": [(packages, packages.glob("*.dist-info/**/*LICEN*"))],
        "headers": [(root, root.rglob("*.h")) for root in map(_package, ("numpy", "torch")) if root is not None],
    }
    files = [file for root, found in roots[domain] for file in _shuffled(root, [f for f in found if f.is_file()])]
    if not files:
        raise StreamDataError(f"domains: this Python installation has no files of '{domain}': choose others, or data")
    return files


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)  # finds, and does not import
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _shuffled(root: Path, files: list[Path]) -> list[Path]:
    """Returns files by the hash of their path under `root`: the same order wherever the folder lies."""
    return sorted(files, key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
