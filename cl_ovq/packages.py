"""Makes sure that `kernels` and `streams` are this project's own.

Both names are plain words, and other distributions install packages called so. Whichever comes first on the import path
wins, so the platform looks before it computes anything with the wrong one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

MARK = '__project__ = "cl-ovq"'


def check_packages() -> None:
    """Find `kernels` and `streams` on the import path and check the mark that this project's own carry.

    The mark is read from the file, not imported: importing `kernels` loads PyTorch, which would make every command wait
    for seconds.

    Raises:
        ImportError: one of them is missing, or belongs to another distribution.
    """
    for name in ("kernels", "streams"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"cl_ovq needs its own package '{name}', and none is installed: reinstall cl-ovq")
        if spec.origin is None or MARK not in Path(spec.origin).read_text(encoding="utf-8"):
            where = spec.origin or ", ".join(spec.submodule_search_locations or ["an unknown place"])
            raise ImportError(
                f"cl_ovq needs its own package '{name}', but found another distribution's at {where}: "
                "uninstall that distribution, or use a separate virtual environment"
            )
