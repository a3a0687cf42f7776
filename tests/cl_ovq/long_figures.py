"""Draws every figure of a run and of a comparison for a stream of so many experiences, and tells what that took.

Run as a program: `long_figures.py EXPERIENCES RUNS RECORDS FOLDER` prints a line of JSON.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch

from cl_ovq.comparison.figures import all_figures
from cl_ovq.evaluation import figures
from cl_ovq.evaluation.anytime import anytime_figure
from cl_ovq.evaluation.dictionaries import DictionaryRecord
from cl_ovq.evaluation.length_generalization import lengths_figure
from cl_ovq.evaluation.matrix import Point
from cl_ovq.evaluation.metrics import by_age, to_lists
from cl_ovq.evaluation.slot_statistics import SlotStatistics
from cl_ovq.runs.groups import Group
from cl_ovq.runs.result import Result


def memory(name):
    """Return a line of the kernel's account of this process in MB: `VmRSS` now, `VmHWM` at its peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1000


def matrix_of(experiences, seed=0, quality=0.9):
    """A matrix as naive learning gives it: what was learned is forgotten over the experiences that follow."""
    noise = np.random.default_rng(seed).random((experiences + 1, experiences)) / 10
    since = np.arange(experiences + 1)[:, None] - np.arange(1, experiences + 1)
    learned = quality * (0.35 + 0.65 * np.exp(-np.maximum(since, 0) / (0.2 * experiences)))
    return np.where(since >= 0, learned, 0.1) + noise


def records_of(experiences, count):
    steps = np.arange(count)
    size = 512 * (1 - np.exp(-steps / (0.3 * count)))
    return [
        DictionaryRecord(int(s), int(1 + s * experiences // count), 64.0 * s, float(n), float(0.7 * n))
        for s, n in zip(steps, size, strict=True)
    ]


def slots_of(experiences):
    slots = np.linspace(100, 512, experiences)
    return [
        SlotStatistics(
            i + 1, 0.1, 0.8, 0.2, 5.0, None, 0.3, [*np.full(i + 1, slots[i] / (i + 1)), *np.zeros(experiences - i - 1)]
        )
        for i in range(experiences)
    ]


class Entries:
    """What the figure of entries asks of a dictionary."""

    def __init__(self, experiences, slots):
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(experiences, 16, generator=generator)
        owner = torch.randint(experiences, (slots,), generator=generator)
        self.state = self
        self.keys = (centres[owner] + 0.3 * torch.randn(slots, 16, generator=generator))[None, None]
        self.counts = torch.randint(1, 500, (1, 1, slots), generator=generator)
        self.written = torch.zeros(experiences, 1, slots, dtype=torch.int16)
        self.written[owner, 0, torch.arange(slots)] = 1


@functools.cache
def lists_of(experiences, number):
    return to_lists(matrix_of(experiences, number, 0.9 - 0.4 * number))


def group_of(experiences, number, history):
    matrix = lists_of(experiences, number % 2)  # shared: what a figure takes is to be seen, not what results take
    return Group(
        f"patch_transformer ovq replay number {number}",
        {
            seed: Result(
                None, "run", matrix, {}, {"forgetting": 0.1 + number / 100},
                {"scope": "stream", "history": history}, {}, {"replay_bytes": 1000 * number, "dictionary_bytes": 5}, ""
            )
            for seed in range(2)
        },
    )  # fmt: skip


def main(experiences, runs, count, folder):
    matrix, records, slots = matrix_of(experiences), records_of(experiences, count), slots_of(experiences)
    entries = Entries(experiences, min(count, 100_000))
    moments = range(1, count + 1, max(1, count // (3 * experiences)))
    points = [Point(s, 1 + (s - 1) * experiences // count, []) for s in moments]
    for point in points:
        point.values = matrix[point.experience, : point.experience].tolist()
    history = [{"step": r.step, "size": r.size} for r in records]
    groups = [group_of(experiences, number, history) for number in range(runs)]
    lengths = {
        group.name: [
            {
                "tokens": 2**n, "value": 0.9**n, "quantity": "accuracy", "state_bytes": 1000 + number,
                "distances": [{"nearest": 2**d, "value": 0.9**d} for d in range(n)],
            }
            for n in range(6, 14)
        ]
        for number, group in enumerate(groups)
    }  # fmt: skip
    name = "patch_transformer ovq stream replay seed 0"
    draw = {
        "matrix": lambda: figures.matrix_figure(matrix, name),
        "growth": lambda: figures.growth_figure(records, 512, name),
        "owners": lambda: figures.ownership_figure(slots, name),
        "entries": lambda: figures.entries_figure(entries, name),
        "by_age": lambda: figures.age_figure(by_age(matrix), name),
        "anytime": lambda: anytime_figure(points, name),
        "lengths": lambda: lengths_figure(lengths, 512),
    }
    figures.matrix_figure(matrix_of(2), name).savefig(folder / "warm-up.png")  # fonts and what else is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmRSS")
    for file, one in draw.items():
        one().savefig(folder / f"{file}.png", dpi=120)
    for heading, figure in all_figures(groups).items():
        figure.savefig(folder / f"compared {heading}.png", dpi=120)
    print(json.dumps({"mb": memory("VmHWM") - before}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
