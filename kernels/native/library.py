"""The native library: where it lies, and how it is compiled.

It is compiled for the machine's own instructions and for one version of PyTorch, once, and kept in the user's cache.
`python -m kernels.native` does it, and so does the first call that asks for `implementation="native"`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_loaded = False
SOURCES = ("scan.cpp", "backward.cpp", "step.cpp")
HEADERS = ("call.h", "arithmetic.h")
# Compilers prefer half of a processor's vectors, for the sake of its clock; here loops over numbers are the work.
_WIDE = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
_MATHS = ("-fno-math-errno", "-fno-trapping-math")
FLAGS = ("-std=c++20", "-O3", "-march=native", *_WIDE, "-fopenmp", *_MATHS, "-fPIC", "-shared")


def library_path() -> Path:
    """Where the library of these sources, this PyTorch and this processor lies once it is compiled."""
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((_HERE / name).read_bytes())
    digest.update("\0".join((*FLAGS, torch.__version__, _processor())).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cl-ovq" / "native" / f"{digest.hexdigest()[:16]}.so"


def _processor() -> str:
    """What a processor can do; a library compiled for more would stop the process."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.system()} {flags}"


def is_loaded() -> bool:
    """Whether the library's functions are in `torch.ops.ovq_native`."""
    return _loaded


def load() -> bool:
    """Load the library if it has been compiled; return whether its functions are there."""
    global _loaded  # not a cache: torch.compile reads it
    if not _loaded and is_allowed():
        # Made by a compiler that this machine cannot use, or there is no home to look in: `chunked` serves.
        with suppress(OSError, RuntimeError):
            path = library_path()
            if path.exists():
                torch.ops.load_library(str(path))
                _loaded = True
    return _loaded


def is_allowed() -> bool:
    """Whether the library may be used: on Linux, unless `CL_OVQ_NATIVE=0` says no."""
    return sys.platform == "linux" and os.environ.get("CL_OVQ_NATIVE") != "0"


def build() -> Path:
    """Compile the library unless it is there, and load it.

    Raises:
        ValueError: there is no compiler, or it or the linker fails: with its first error.
    """
    if load():
        return library_path()
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++") or "g++"]
    if not is_allowed() or shutil.which(compiler[0]) is None:
        raise ValueError("implementation 'native' needs Linux and a C++ compiler (g++), and CL_OVQ_NATIVE not to be 0")
    try:
        path = library_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one compiles it
            if load():
                return path
            made = Path(folder) / path.name
            done = subprocess.run(_command(compiler, made), capture_output=True, text=True)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise ValueError(
                    f"implementation 'native' cannot be compiled by {' '.join(compiler)}: {' '.join(errors[:1])}"
                )
            made.replace(path)
    except (OSError, RuntimeError) as error:  # a cache that cannot be written, or no home to have one in
        raise ValueError(f"implementation 'native' cannot be compiled into the cache: {error}") from None
    if not load():
        raise ValueError(f"implementation 'native': {path} was compiled, but does not load")
    return path


def _command(compiler: list[str], output: Path) -> list[str]:
    root = Path(torch.__file__).parent
    headers = (root / "include", root / "include" / "torch" / "csrc" / "api" / "include")
    libraries = root / "lib"
    return [
        *(*compiler, *FLAGS, *(str(_HERE / name) for name in SOURCES), "-o", str(output)),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-I{folder}" for folder in headers),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu"),
    ]
