"""Runs the parts in their order: `python -m cl_ovq.benchmarks.gpu --help`."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from cl_ovq.benchmarks.gpu import records
from cl_ovq.benchmarks.gpu.parts import PARTS, Part, Settings
from cl_ovq.benchmarks.gpu.report import report, summary
from cl_ovq.benchmarks.gpu.running import environment_of, run_part
from cl_ovq.benchmarks.gpu.wheels import ROOT, unpack
from kernels.options import check_name

MOST_PROCESSES = 16  # a container shows all cores of its host


def read_arguments() -> argparse.Namespace:
    """Read the command line; what cannot be ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m cl_ovq.benchmarks.gpu", description=__doc__)
    cores = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything; a later call goes on (default 9.5)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/gpu", help="folder of records and report")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".gpu-wheels", help="folder that `make gpu-wheels` fills")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="comma-separated (default: all)")
    parser.add_argument("--processes", type=int, default=max(2, cores), help="side by side (default: every core)")
    parser.add_argument("--retry", action="store_true", help="run again what failed or was wrong")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: tiny sizes in Triton's interpreter")
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    for name in given.parts:
        try:
            check_name("part", name, (part.name for part in PARTS))
        except ValueError as error:
            parser.error(str(error))
    if not given.minutes > 0:
        parser.error(f"--minutes: must be positive, got {given.minutes}")
    if given.processes < 1:
        parser.error(f"--processes: must be at least 1, got {given.processes}")
    if not given.rehearse and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU here; --rehearse runs everything small, without one")
    given.output = given.output.resolve()
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        for name in given.parts:
            records.path_of(given.output, name).touch()
        fcntl.flock(os.open(given.output, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        parser.error(f"--output: another run is writing to {given.output}")
    except OSError as error:
        parser.error(f"--output: cannot write to {given.output}: {error.strerror}")
    return given


def main() -> int:
    """Run and report; 0 if everything was run and right."""
    given = read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is running is ended, too
    output, settings = given.output, Settings(given.rehearse, given.processes, given.output)
    spent = time.time() - psutil.Process().create_time()  # imports take their time on a cold machine
    deadline = time.monotonic() + 60 * given.minutes - spent
    parts = [part for part in PARTS if part.name in given.parts]
    with tempfile.TemporaryDirectory() as place:
        carried, lacking = unpack(given.wheels.resolve(), Path(place))
        for line in lacking:
            print(f"left out for want of {line}", flush=True)
        for part in parts:
            prepare(part, settings, retry=given.retry)
        if any(part.warmed and not _is_done(part, settings) for part in parts):
            records.write(records.path_of(output, "warm_up"), [])  # another machine's cache is empty
        for bounded in (True, False):  # first every part for its share of the time, then what is left of them
            for part in parts:
                if not _is_done(part, settings):
                    begun = time.monotonic()
                    end = min(deadline, begun + part.seconds) if bounded else deadline
                    how = "not begun, out of time"
                    if begun < deadline:
                        how = run_part(part, settings, environment_of(settings, carried, part), end)
                    spent = time.monotonic() - begun
                    print(f"{part.name}: {how}, {spent:.0f} s; {summary(output, part.name)}", flush=True)
                    report(output, lacking, rehearsal=given.rehearse)
    report(output, lacking, rehearsal=given.rehearse)
    found = [records.read(records.path_of(output, part.name)) for part in parts]
    return 0 if all(records.is_done(rows) and all(map(records.is_right, rows)) for rows in found) else 1


def prepare(part: Part, settings: Settings, *, retry: bool) -> None:
    """Drop records that do not stand: why a part could not start, and with `retry` what failed or was wrong."""
    path = records.path_of(settings.output, part.name)
    known = [record for record in records.read(path) if "part" not in record]
    if retry and not all(map(records.is_right, known)):
        failed = {_name(record) for record in known if not records.is_right(record)}
        known = [record for record in known if not record.get("done") and _name(record) not in failed]
    records.write(path, known)


def _name(record: records.Record) -> str | None:
    name: str | None = record.get("item", record.get("test"))
    return name


def _is_done(part: Part, settings: Settings) -> bool:
    return records.is_done(records.read(records.path_of(settings.output, part.name)))


if __name__ == "__main__":
    sys.exit(main())
