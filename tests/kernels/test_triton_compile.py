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


@pytest.mark.parametrize("target", INSTRUCTIONS)
def test_the_usual_size_compiles_soundly(tmp_path, target):
    """A training step, and on sm_90 every other kind of call: no spills, all fits, products are the matrix units'."""
    whole = target == "sm_90"  # all kinds on all targets take minutes
    usual = ["--targets", target, "--dtypes", "bfloat16", "--heads", "64", "--chunks", "128"]
    reports = compiled(tmp_path, *usual, *([] if whole else ["--no-variants"]))
    others = {"assign_batch", "choose_batch", "settle_batch", "write_batch"} if whole else set()
    assert {r["kernel"] for r in reports} - others == {
        "scan",
        "trace",
        "read",
        "queries_backward",
        "tokens_backward",
        "dictionary_backward",
        "finish_tokens",
    }
    assert others <= {r["kernel"] for r in reports}
    problems = {r["problem"] for r in reports}
    if metadata.version("triton").startswith("3.8"):  # the compiler that the tiles were chosen with
        assert problems == {""}
    else:
        assert all(not problem or problem.endswith("spilled") for problem in problems)
    assert next(r for r in reports if r["kernel"] == "read")["matrix"] == INSTRUCTIONS[target]
    assert all(r["registers"] > 0 for r in reports)


@pytest.mark.slow
def test_every_configuration_compiles(tmp_path):
    """Nothing spills but what `docs/kernels.md` tells of: float32 with heads of 128, and 8 bytes elsewhere."""
    reports = compiled(tmp_path, "--jobs", "2")
    wrong = [r for r in reports if r["problem"] and not r["problem"].endswith("spilled")]
    assert not wrong
    if metadata.version("triton").startswith("3.8"):
        assert all(r["spilled"] <= 8 or "float32 D=128" in r["shape"] for r in reports)


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
