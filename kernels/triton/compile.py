"""Compile every kernel ahead of time, for GPUs that need not be there, and read what the assemblers say of it.

`python -m kernels.triton.compile` prints a table; `--help` lists what it takes. What is compiled is what calls would
launch: calls are made on tensors without data, and their launches recorded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from kernels.triton.ahead import aiming_at, compiled, key
from kernels.triton.launch import INTERPRETED
from kernels.triton.observing import Launch, recording
from kernels.triton.shapes import DTYPES, Shape, draw, run
from kernels.triton.tiles import for_target

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {
    "sm_80": 166_912,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "gfx942": 65_536,
}  # bytes that one program may use
MATRIX = ("tcgen05.mma", "wgmma.mma_async", "mma.sync", "v_mfma")
WITHOUT_PRODUCTS = ("trace", "finish_tokens", "choose_batch", "spoil_batch")


@dataclass(frozen=True)
class Report:
    """What the assembler says of one kernel on one target.

    Attributes:
        kernel: its name.
        shape: what it was compiled for, in words.
        target: a name in `TARGETS`.
        shared: bytes of shared memory of a program.
        registers: of a thread.
        spilled: bytes (on AMD: registers) of a thread that do not fit registers and lie in memory.
        matrix: the matrix instruction that it uses; empty if none.
        warps: of a program.
        problem: what is wrong; empty if nothing is.
    """

    kernel: str
    shape: str
    target: str
    shared: int
    registers: int
    spilled: int
    matrix: str
    warps: int
    problem: str


def launches(shape: Shape, target: str) -> list[Launch]:
    """The launches that a call of this shape makes on a target, forward and backward."""
    with recording() as made, for_target(target):
        run(shape, draw(shape, "meta"))
    return made


def compile_for(made: Launch, shape: str, target: str) -> Report:
    """Compile one launch for one target."""
    name = made.kernel.__name__
    precise = dict(made.arguments)
    if target.startswith("gfx") and "PRECISION" in precise:
        precise["PRECISION"] = "ieee"
    warps = made.options["num_warps"]
    try:
        with aiming_at(TARGETS[target]):
            found = compiled(replace(made, arguments=precise))
    except Exception as error:  # whatever stage of the compiler failed, it is what the report says
        return Report(name, shape, target, 0, 0, 0, "", warps, str(error).strip().splitlines()[-1][:200])
    shared = found.metadata.shared
    text = found.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    registers, spilled = _amd(text) if target.startswith("gfx") else _nvidia(text, target)
    matrix = next((word for word in MATRIX if word in text), "")
    problems = []
    if shared > SHARED_LIMIT[target]:
        problems.append(f"{shared} bytes of shared memory of {SHARED_LIMIT[target]}")
    if spilled:
        problems.append(f"{spilled} spilled")
    if not matrix and name not in WITHOUT_PRODUCTS:
        problems.append("no matrix instruction")
    return Report(name, shape, target, shared, registers, spilled, matrix, warps, "; ".join(problems))


def _nvidia(ptx: str, target: str) -> tuple[int, int]:
    """Registers of a thread and bytes that it spills, from the assembler's report."""
    tools = triton.knobs.nvidia
    tool = tools.ptxas_blackwell if target == "sm_100" else tools.ptxas
    architecture = target if target == "sm_80" else f"{target}a"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tool.path, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    patterns = (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    registers, stores, loads = (int(re.search(pattern, text)[1]) for pattern in patterns)  # type: ignore[index]
    return registers, max(stores, loads)


def _amd(text: str) -> tuple[int, int]:
    """Vector registers of a thread, and those spilled to memory, from the assembly's metadata.

    Scalar registers that do not fit lie in lanes of vector registers, not in memory.
    """
    found = {
        name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]
        for name in ("vgpr_count", "vgpr_spill_count")
    }
    return found["vgpr_count"], found["vgpr_spill_count"]


def shapes(dtypes: Iterable[str], heads: Iterable[int], chunks: Iterable[int], *, variants: bool) -> list[Shape]:
    """All combinations for training; with `variants` the other kinds of calls and options too, at one size each."""
    found = [Shape("train", *sizes) for sizes in itertools.product(dtypes, heads, chunks)]
    if variants:
        for dtype, head in itertools.product(dtypes, heads):
            found += [Shape(kind, dtype, head, 128) for kind in ("decode", "resume", "write")]
            found.append(Shape("shared", dtype, head, 128, biased=True))
        for dtype in dtypes:
            for choice in VARIANTS:
                found.append(Shape("train", dtype, 64, 128, **choice))
            found.append(Shape("train", dtype, 64, 256))
    return found


VARIANTS: tuple[dict[str, Any], ...] = (
    {"choices": (("read_out", "gmr"),), "biased": True},
    {"choices": (("read_out", "unit"), ("query_norm", False)), "group": 4},
    {"choices": (("learning_rate", "floored"), ("seeds", "random"))},
    {"choices": (("growth", "novelty"), ("assignment", "old"))},
)


def reports(wanted: Sequence[Shape], targets: Sequence[str], jobs: int = 1) -> list[Report]:
    """Compile all launches of these shapes for these targets, each distinct one once."""
    work: dict[str, tuple[Shape, int, str]] = {}
    for shape in wanted:
        for target in targets:
            with aiming_at(TARGETS[target]):
                for index, made in enumerate(launches(shape, target)):
                    work.setdefault(f"{target} {key(made)}", (shape, index, target))
    items = list(work.values())
    if jobs == 1:
        return [_job(item) for item in items]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_job, items))


def _job(item: tuple[Shape, int, str]) -> Report:
    shape, index, target = item
    report = compile_for(launches(shape, target)[index], shape.words, target)
    print(f"{report.target} {report.kernel} {report.shape}: {report.problem or 'sound'}", file=sys.stderr, flush=True)
    return report


def summary(found: Sequence[Report]) -> str:
    """A Markdown table, one row per kernel and target."""
    lines = [
        "| kernel | target | compiled | registers, most | spilled, most | shared memory, most | matrix instruction |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    groups: dict[tuple[str, str], list[Report]] = {}
    for report in found:
        groups.setdefault((report.kernel, report.target), []).append(report)
    for (kernel, target), group in groups.items():
        used = ", ".join(f"`{m}`" for m in sorted({r.matrix for r in group if r.matrix})) or "none needed"
        spilling = sum(r.spilled > 0 for r in group)
        spilled = f"{max(r.spilled for r in group)}" + (f" (in {spilling})" if spilling else "")
        shared = max(r.shared for r in group) / 1024
        lines.append(
            f"| `{kernel}` | {target} | {len(group)} | {max(r.registers for r in group)} | {spilled} "
            f"| {shared:.0f} of {SHARED_LIMIT[target] // 1024} KiB | {used} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table, and return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m kernels.triton.compile", description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--heads", default="32,64,128", help="head sizes")
    parser.add_argument("--chunks", default="32,64,128", help="chunk sizes")
    parser.add_argument("--no-variants", action="store_true", help="training with default options alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, help="folder for compiled.json and compiled.md")
    given = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: kernels would be interpreted, not compiled")
    wanted = shapes(
        given.dtypes.split(","),
        [int(x) for x in given.heads.split(",")],
        [int(x) for x in given.chunks.split(",")],
        variants=not given.no_variants,
    )
    found = reports(wanted, given.targets.split(","), given.jobs)
    print(summary(found))
    wrong = [r for r in found if r.problem]
    for report in wrong:
        print(f"{report.target} {report.kernel} {report.shape}: {report.problem}")
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        result = {"triton": triton.__version__, "reports": [asdict(r) for r in found]}
        (given.output / "compiled.json").write_text(json.dumps(result, indent=1) + "\n")
        (given.output / "compiled.md").write_text(summary(found))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
