"""Works through the items of one part that have no record yet: `python -m cl_ovq.benchmarks.gpu.worker PART`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from cl_ovq.benchmarks.gpu import records
from cl_ovq.benchmarks.gpu.parts import PARTS, Item, Part, Settings

LEFT_BROKEN = 3  # exit code: the GPU no longer answers this process, another must go on


def run_item(item: Item, path: Path) -> bool:
    """Run an item and write its record; return whether it ended well."""
    records.append(path, item=item.name, begun=time.time(), limit=item.limit)
    begun = time.perf_counter()
    try:
        result = item.run()
    except Exception:  # whatever it was, it is the item's result, and the others still have theirs to give
        error = traceback.format_exc()[-3000:]
        records.append(path, item=item.name, ok=False, seconds=time.perf_counter() - begun, error=error)
        return False
    records.append(path, item=item.name, ok=True, seconds=time.perf_counter() - begun, result=result)
    return True


def gpu_answers() -> bool:
    """Whether this process can still use the GPU; after an illegal access it cannot."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError:
        return False
    return True


def work(part: Part, settings: Settings) -> int:
    """Run what has no record; return an exit code."""
    path = records.path_of(settings.output, part.name)
    known = records.ended(records.read(path))
    for item in part.items(settings):
        if item.name not in known and not run_item(item, path) and not gpu_answers():
            return LEFT_BROKEN
    records.append(path, done=True)
    return 0


def end_with_parent() -> None:
    """End this process and what it started when the one that started it is gone: no GPU is kept busy by an orphan."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Read the command line."""
    end_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--rehearsal", action="store_true")
    given = parser.parse_args()
    part = next(part for part in PARTS if part.name == given.part)
    return work(part, Settings(given.rehearsal, given.processes, given.output))


if __name__ == "__main__":
    sys.exit(main())
