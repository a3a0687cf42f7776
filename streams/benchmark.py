"""Avalanche's view of a stream's samples, for streams of any kind."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streams.counter_rng import Draws
from streams.errors import StreamDataError

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario


def make_benchmark(
    samples: Any,
    split: Mapping[str, np.ndarray],
    experiences: np.ndarray,
    labels: np.ndarray,
    *,
    task_labels: np.ndarray | None = None,
    blur: float = 0.0,
    seed: int = 0,
) -> CLScenario:
    """Returns Avalanche's benchmark.

    Args:
        samples: all samples of the stream; has a length and items.
        split: rows of each stream.
        experiences: `[n]`, one per sample.
        labels: `[n]`, by which Avalanche tells classes apart.
        task_labels: `[n]`, one per sample; 0 for all if None.
        blur: see `blurred`; of the training stream only.
        seed: decides which samples cross a blurred boundary.

    Raises:
        StreamDataError: there is no boundary to blur.
    """
    parts = {name: by_experience(rows, experiences) for name, rows in split.items()}
    if blur and len(parts["train"]) < 2:
        raise StreamDataError(
            f"blur={blur}: a single experience has no boundaries to blur: use more experiences, or blur=0"
        )
    if blur:
        parts["train"] = blurred(parts["train"], blur, Draws("blur", seed))
    return benchmark_of(samples, parts, labels, task_labels)


def benchmark_of(
    samples: Any, parts: Mapping[str, list[np.ndarray]], labels: np.ndarray, task_labels: np.ndarray | None = None
) -> CLScenario:
    """Returns Avalanche's benchmark of samples whose rows in each experience are known.

    Args:
        samples: see `make_benchmark`.
        parts: rows of each experience by stream.
        labels: see `make_benchmark`.
        task_labels: see `make_benchmark`.
    """
    # Imported here since it takes 7 to 11 s.
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import (
        ConstantSequence,
        DataAttribute,
        TaskAwareSupervisedClassificationDataset,
        TaskLabels,
    )

    # One dataset, of which every experience is a subset: they then share its attributes' storage, so that Avalanche
    # merges indices when a replay buffer concatenates them, instead of growing a tree.
    everything = TaskAwareSupervisedClassificationDataset(
        [samples],
        data_attributes=[
            DataAttribute(labels.tolist(), "targets"),
            TaskLabels(ConstantSequence(0, len(samples)) if task_labels is None else task_labels.tolist()),
            DataAttribute(range(len(samples)), "rows"),
        ],
    )
    datasets = {name: [everything.subset(rows.tolist()) for rows in found] for name, found in parts.items()}
    return with_task_labels(with_classes_timeline(benchmark_from_datasets(**datasets)))


def by_experience(rows: np.ndarray, experiences: np.ndarray) -> list[np.ndarray]:
    """Returns the rows of each experience, in their order."""
    return [rows[experiences[rows] == experience] for experience in range(int(experiences.max()) + 1)]


def blurred(parts: list[np.ndarray], blur: float, draws: Draws) -> list[np.ndarray]:
    """Blurs the boundaries between experiences: near one, samples of both sides mix.

    Every sample has a time in the stream, even within its experience, which is moved by up to `blur` of an experience
    to either side; then time is cut where it was. Experiences keep their sizes.

    Args:
        parts: rows of each experience, in the order of the stream.
        blur: in experiences; with 1 a sample may come an experience early or late.
        draws: the source of chance.
    """
    unit = 1 << 20
    reach = round(blur * unit)
    times = [number * unit + draws.below(unit, len(rows)) for number, rows in enumerate(parts)]
    rows, time = np.concatenate(parts), np.concatenate(times)
    time = time + draws.below(2 * reach + 1, len(rows)) - reach
    ordered = rows[np.argsort(time, kind="stable")]
    ends = np.cumsum([len(part) for part in parts])
    return [np.sort(part) for part in np.split(ordered, ends[:-1])]


def shape_facts(shape: Sequence[int]) -> dict[str, list[int]]:
    """Returns what provenance says of a sample's shape: `image_shape` `[C, H, W]`, or `vector_shape` `[F]`.

    Texts have none.
    """
    return {"image_shape" if len(shape) == 3 else "vector_shape": list(shape)} if shape else {}


def split_digest(split: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256 of which rows are in which stream."""
    digest = hashlib.sha256()
    for name, rows in split.items():
        digest.update(name.encode() + rows.tobytes())
    return digest.hexdigest()
