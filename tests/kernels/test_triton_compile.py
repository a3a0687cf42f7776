"""Kernels compiled for GPUs that are not here, and what the assemblers say, in processes that do not interpret."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

pytest.importorskip("triton")

INSTRUCTIONS = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}


def python(*arguments):
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def compiled(tmp_path, *arguments):
    """Reports of the command with these arguments."""
    run = python("-m", "kernels.triton.compile", "--output", str(tmp_path), *arguments)
    assert (tmp_path / "compiled.json").exists(), run.stderr[-2000:]
    reports = json.loads((tmp_path / "compiled.json").read_text())["reports"]
    assert run.returncode == any(r["problem"] for r in reports)
    return reports


# CI compiles a quarter of all kernels for every target as well, see `make kernels-some`.
@pytest.mark.slow
@pytest.mark.parametrize("target", INSTRUCTIONS)
def test_the_usual_size_compiles_soundly(tmp_path, target):
    """A training step: no spills, all fits, products are the matrix units'. `make kernels` compiles the whole set."""
    usual = ["--targets", target, "--dtypes", "bfloat16", "--heads", "64", "--chunks", "128", "--no-variants"]
    reports = compiled(tmp_path, *usual)
    assert {r["kernel"] for r in reports} == {
        "scan",
        "trace",
        "read",
        "queries_backward",
        "tokens_backward",
        "dictionary_backward",
        "finish_tokens",
    }
    problems = {r["problem"] for r in reports} - {""}
    if not metadata.version("triton").startswith("3.8"):  # not the compiler that tiles were chosen with
        problems = {problem for problem in problems if not problem.endswith("spilled")}
    assert not problems
    assert next(r for r in reports if r["kernel"] == "read")["matrix"] == INSTRUCTIONS[target]
    assert all(r["registers"] > 0 for r in reports)


AHEAD = """
from kernels.triton.ahead import aiming_at, compiled
from kernels.triton.compile import TARGETS, launches
from kernels.triton.shapes import Shape
shape = Shape("resume", "bfloat16", 20, 16, rows=1, tokens=40, heads=3)
with aiming_at(TARGETS["sm_90"]):
    for made in launches(shape, "sm_90"):
        compiled(made)
"""
# The same call on tensors with data, launched as ever; only that there is no GPU to hand the compiled kernel to.
LAUNCHED = """
from triton.compiler import CompiledKernel
import kernels.attention, kernels.triton.support
from kernels.triton.ahead import aiming_at
from kernels.triton.compile import TARGETS
from kernels.triton.shapes import Shape, draw, run
launched = []
CompiledKernel.run = property(lambda self: lambda *arguments: launched.append(self.name))
CompiledKernel.launch_metadata = lambda *arguments: None
CompiledKernel.function = None
kernels.triton.support.on_gpu = lambda x: True
shape = Shape("resume", "bfloat16", 20, 16, rows=1, tokens=40, heads=3)
with aiming_at(TARGETS["sm_90"]):
    run(shape, draw(shape, "cpu"))
print(len(launched))
"""


def test_what_is_compiled_ahead_is_what_a_launch_looks_up(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert python("-c", AHEAD).returncode == 0
    ahead = sorted(tmp_path.rglob("*.cubin"))
    assert len(ahead) >= 7
    run = python("-c", LAUNCHED)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) >= len(ahead)
    assert sorted(tmp_path.rglob("*.cubin")) == ahead


OVERSIZED = """
from kernels.triton.compile import Shape, compile_for, launches
from kernels.triton.tile_table import TILES
TILES["scan", "sm_80", False, 64, True] = (128, 128, 4, 1, 32)
made = launches(Shape("write", "bfloat16", 64, 128), "sm_80")
made = next(launch for launch in made if launch.kernel.__name__ == "assign_batch")
print(compile_for(made, "", "sm_80").problem)
"""


def test_a_tile_too_large_is_reported():
    assert "spilled" in python("-c", OVERSIZED).stdout
