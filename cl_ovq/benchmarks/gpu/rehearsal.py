"""The whole run without a GPU, with the packages of a GPU machine: `python -m cl_ovq.benchmarks.gpu.rehearsal`.

An import, an argument or a shape that is wrong is found here, and not in the ten minutes of a GPU.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cl_ovq.benchmarks.gpu.wheels import ROOT, fill

PYTHON = "3.12"
IMAGE = (
    "torch==2.11.0",
    "triton==3.6.0",
    "numpy==2.5.2",
    "pytest",
    "hypothesis",
    "pytest-xdist",
    "typer",
    "rich",
    "psutil",
    "matplotlib",
)
MINUTES = 20  # on two busy cores; it takes five on idle ones


def find_python() -> str | None:
    """An interpreter of the image's version: on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{PYTHON}"), *sorted(pyenv.glob(f"versions/{PYTHON}.*/bin/python{PYTHON}"))]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return str(candidate)
    return None


def environment(python: str) -> Path:
    """The Python of an environment with the image's packages, made where there is none yet.

    It takes 6 GB, so all checkouts share it, and it is complete once its stamp is there.

    Raises:
        subprocess.CalledProcessError: a package cannot be had.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    digest = hashlib.sha256("\n".join((PYTHON, *IMAGE)).encode()).hexdigest()[:12]
    folder = cache / "cl-ovq" / f"gpu-image-{digest}"
    found = folder / "bin" / "python"
    if not (folder / "stamp").exists():
        print(f"installing a GPU machine's packages into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([found, "-m", "pip", "install", "--quiet", *IMAGE], check=True)
        (folder / "stamp").touch()
    return found


def main() -> int:
    """Rehearse; 0 if all parts went well, and where the packages cannot be had, which is said."""
    python = find_python()
    if python is None:
        print(f"skipped: no Python {PYTHON}, which a GPU machine's image has, is installed")
        return 0
    wheels = ROOT / ".gpu-wheels"
    try:
        found = environment(python)
        fill(wheels)
    except subprocess.CalledProcessError as error:
        print(f"skipped: a GPU machine's packages cannot be had ({' '.join(map(str, error.cmd))[:200]} failed)")
        return 0
    with tempfile.TemporaryDirectory() as output:
        command = [str(found), "-m", "cl_ovq.benchmarks.gpu", "--rehearse", "--output", output, "--wheels", str(wheels)]
        code = subprocess.run([*command, "--minutes", str(MINUTES)], cwd=ROOT).returncode
        if code:
            print((Path(output) / "report.md").read_text(encoding="utf-8"))
    return code


if __name__ == "__main__":
    sys.exit(main())
