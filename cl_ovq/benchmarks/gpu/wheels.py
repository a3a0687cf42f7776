"""What a GPU machine without a network lacks, in a folder of less than 20 MB.

`python -m cl_ovq.benchmarks.gpu.wheels FOLDER` fills it, where there is a network; `unpack` makes use of it.
"""

from __future__ import annotations

import importlib.util
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("omegaconf", "PyYAML", "fla-core", "flash-linear-attention", "einops")  # versions: `constraints.txt`
ASSEMBLER = "nvidia-cuda-nvcc"  # of it only ptxas: those that Triton ships are suspected of wrong code on Hopper
MEMBER = "bin/ptxas"
PTXAS = "ptxas.xz"
IMPORTS = {"fla_core": "fla", "flash_linear_attention": "fla", "pyyaml": "yaml"}  # where names differ


def fill(folder: Path) -> list[Path]:
    """Download what is missing into the folder, and return all of its files.

    Raises:
        subprocess.CalledProcessError: pip could not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if not list(folder.glob(f"{name.replace('-', '_').lower()}-*.whl")):
            _download(name, folder)
    if not (folder / PTXAS).exists():
        with tempfile.TemporaryDirectory() as place:
            _download(ASSEMBLER, Path(place))
            (wheel,) = Path(place).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (name for name in archive.namelist() if name.endswith(MEMBER))
                packed = lzma.compress(archive.read(member), preset=9)
        (folder / PTXAS).write_bytes(packed)
    return sorted(folder.iterdir())


def _download(name: str, folder: Path) -> None:
    """One wheel, for the Python and the system of a GPU machine whatever this one's are."""
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version=3.12", "--implementation=cp", *platforms]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder), name]
    subprocess.run(command, check=True)


def unpack(folder: Path, target: Path) -> tuple[dict[str, str], list[str]]:
    """Unpack what this machine lacks.

    Args:
        folder: as `fill` left it; it need not exist.
        target: an empty folder.

    Returns:
        The environment with which processes find it, and what is lacking still, in words.
    """
    environment: dict[str, str] = {}
    lacking: list[str] = []
    site = target / "site"
    site.mkdir(parents=True)
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0].lower()
        if importlib.util.find_spec(IMPORTS.get(name, name)) is None:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)
            except (OSError, zipfile.BadZipFile) as error:
                lacking.append(f"{wheel.name} (damaged: {error})")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    lacking += [
        f"{name} (install it, or fill {folder} by `make gpu-wheels`)"
        for name in ("omegaconf", "yaml", "fla", "einops")
        if importlib.util.find_spec(name) is None and not (site / name).exists()
    ]
    try:
        program = lzma.decompress((folder / PTXAS).read_bytes())
    except FileNotFoundError:
        lacking.append(f"a newer ptxas (fill {folder} by `make gpu-wheels`)")
    except (OSError, lzma.LZMAError) as error:
        lacking.append(f"{PTXAS} (damaged: {error})")
    else:
        tool = target / "ptxas"
        tool.write_bytes(program)
        tool.chmod(0o755)
        environment |= {"TRITON_PTXAS_PATH": str(tool), "TRITON_PTXAS_BLACKWELL_PATH": str(tool)}
    return environment, lacking


if __name__ == "__main__":
    files = fill(Path(sys.argv[1]))
    total = sum(file.stat().st_size for file in files)
    print(f"{sys.argv[1]}: {len(files)} files, {total / 1e6:.1f} MB")
