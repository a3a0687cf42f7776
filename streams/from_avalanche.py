"""A stream made of any benchmark of Avalanche's, with its own data sets and transforms."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streams.benchmark import make_benchmark, shape_facts, split_digest
from streams.errors import StreamDataError
from streams.samples import Samples
from streams.stream import Stream

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario

# Avalanche's name of each of our splits; other streams of a benchmark are left out.
SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}

# Samples of each data set that are read to tell its content from another's.
COMPARED = 8


class DatasetSamples(Samples):
    """Samples that are read from Avalanche's data sets when they are asked for, transforms included.

    Args:
        datasets: each yields an image `[C, H, W]` or a vector `[F]` first.
        targets: `[n]`, labels of all of them.

    Raises:
        StreamDataError: the first sample is no float tensor of one of these shapes.
    """

    def __init__(self, datasets: Sequence[Any], targets: torch.Tensor) -> None:
        self._datasets = list(datasets)
        self._ends = list(accumulate(map(len, self._datasets)))
        self.targets = targets.long()
        first = self._datasets[0][0][0]
        if not isinstance(first, torch.Tensor) or first.ndim not in (1, 3) or not first.is_floating_point():
            found = f"{first.dtype} {list(first.shape)}" if isinstance(first, torch.Tensor) else type(first).__name__
            raise StreamDataError(
                f"a sample must be a float tensor, [channels, height, width] or [features], but it is {found}: "
                "add a transform to the benchmark"
            )
        self.sample_shape = tuple(first.shape)
        self._bytes = first.nbytes

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample, as the model takes it."""
        return self._bytes

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        number = bisect.bisect_right(self._ends, row)
        start = self._ends[number - 1] if number else 0
        image = self._datasets[number][row - start][0]
        try:
            return image.to(torch.float32).view(self.sample_shape), int(self.targets[row])
        except RuntimeError as error:
            raise StreamDataError(
                f"sample {row - start} has shape {list(image.shape)}, but the first has {list(self.sample_shape)}: "
                "add a transform that makes them equal"
            ) from error

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the inputs of `rows` `[b]`, read one by one."""
        return torch.stack([self[row][0] for row in rows.tolist()])


def from_avalanche(benchmark: CLScenario, *, name: str, class_names: Sequence[str] | None = None) -> Stream:
    """Returns the stream of a benchmark, see `Stream.from_avalanche`."""
    if not isinstance(getattr(benchmark, "streams", None), Mapping):
        raise StreamDataError(f"a {type(benchmark).__name__} is not an Avalanche benchmark")
    found = {
        SPLITS[split]: [experience.dataset for experience in stream]
        for split, stream in benchmark.streams.items()
        if split in SPLITS
    }
    _check_streams(found)
    # The views that Avalanche's own strategies take: training transforms for training, the others for evaluation.
    datasets = {
        split: [dataset.train() if split == "train" else dataset.eval() for dataset in parts]
        for split, parts in found.items()
    }
    everything = [dataset for parts in datasets.values() for dataset in parts]
    labels = np.concatenate([_attribute(dataset, "targets") for dataset in everything])
    tasks = np.concatenate([_attribute(dataset, "targets_task_labels") for dataset in everything])
    experiences = np.concatenate(
        [np.full(len(dataset), number) for parts in datasets.values() for number, dataset in enumerate(parts)]
    )
    sizes = [sum(map(len, parts)) for parts in datasets.values()]
    bounds = np.cumsum([0, *sizes])
    split = {name: np.arange(bounds[i], bounds[i + 1], dtype=np.int64) for i, name in enumerate(datasets)}
    samples = DatasetSamples(everything, torch.from_numpy(labels))
    classes = tuple(
        tuple(np.unique(labels[split["train"]][experiences[split["train"]] == number]).tolist())
        for number in range(len(datasets["train"]))
    )
    of_splits = {
        one: [set(labels[rows][experiences[rows] == number].tolist()) for number in range(len(classes))]
        for one, rows in split.items()
    }
    scenario = _scenario(classes, tasks, experiences)
    _check_labels(of_splits)
    if scenario != "domain_incremental":
        _check_own_classes(of_splits, scenario)
    n_classes = int(labels.max()) + 1
    if class_names is not None and len(class_names) != n_classes:
        raise StreamDataError(f"class_names: {len(class_names)} names, but the benchmark has {n_classes} classes")
    return Stream(
        name=name,
        scenario=scenario,
        benchmark=make_benchmark(samples, split, experiences, labels, task_labels=tasks),
        samples=samples,
        n_classes=n_classes,
        classes_per_experience=classes,
        original_classes=classes,
        class_names=tuple(class_names or map(str, range(n_classes))),
        provenance={
            "dataset": name,
            "source": "a benchmark of Avalanche's",
            "files": {},
            "sizes": {one: len(split.get(one, ())) for one in ("train", "validation", "test")},
            **shape_facts(samples.sample_shape),
            "split_sha256": _digest(samples, split, labels, tasks, experiences),
        },
    )


def _check_streams(found: dict[str, list[Any]]) -> None:
    """Refuses a benchmark whose experiences cannot be judged one by one."""
    for split in ("train", "test"):
        if not found.get(split):
            raise StreamDataError(f"the benchmark has no {split} stream")
    for split, parts in found.items():
        if len(parts) != len(found["train"]):
            raise StreamDataError(
                f"the benchmark has {len(found['train'])} training experiences but {len(parts)} {split} experiences: "
                "each experience needs its own test samples"
            )
        for number, dataset in enumerate(parts, start=1):
            if not len(dataset):
                raise StreamDataError(f"experience {number} of the {split} stream is empty")
            if not hasattr(dataset, "targets"):
                raise StreamDataError(
                    f"experience {number} of the {split} stream has no targets: build its data set with "
                    "AvalancheDataset(..., data_attributes=[DataAttribute(labels, 'targets')])"
                )


def _check_labels(classes: dict[str, list[set[int]]]) -> None:
    """Refuses labels that are no classes, or that are asked for and never trained on.

    Args:
        classes: of each experience of each split.
    """
    trained = set().union(*classes["train"])
    for split, parts in classes.items():
        for number, part in enumerate(parts, start=1):
            for label in sorted(part):
                if label < 0:
                    raise StreamDataError(f"{_where(label, number, split)}: classes start at 0")
                if label not in trained:
                    raise StreamDataError(f"{_where(label, number, split)}: no training experience has it")


def _check_own_classes(classes: dict[str, list[set[int]]], scenario: str) -> None:
    """Refuses experiences that are not judged on what they train: a column of the results matrix is one experience.

    A test stream each of whose experiences has all classes is taken as it is, where no task says which are meant. A
    class may be lacking in a part of the validation stream: Avalanche draws that from the training samples, by chance.

    Args:
        classes: of each experience of each split.
        scenario: of the stream.
    """
    everything = set().union(*classes["train"])
    for split, parts in classes.items():
        if scenario != "task_incremental" and all(part == everything for part in parts):
            continue
        for number, (trained, part) in enumerate(zip(classes["train"], parts, strict=True), start=1):
            for label in sorted(part - trained):
                other = next(i for i, found in enumerate(classes["train"], start=1) if label in found)
                raise StreamDataError(
                    f"{_where(label, number, split)}: it is in training experience {other}, not {number}: an "
                    f"experience of a {scenario} stream is evaluated on its own classes"
                )
            if split == "test" and (lacking := sorted(trained - part)):
                raise StreamDataError(
                    f"{_where(lacking[0], number, 'train')}: test experience {number} has no sample of it"
                )


def _where(label: int, number: int, split: str) -> str:
    return f"class {label} in experience {number} of the {split} stream"


def _attribute(dataset: Any, name: str) -> np.ndarray:
    """Returns an attribute of a data set's samples, `[n]` int64; zeros where it has no such."""
    values = getattr(dataset, name, None)
    if values is None:
        return np.zeros(len(dataset), dtype=np.int64)
    numbers = np.fromiter((float(value) for value in values), dtype=np.float64, count=len(dataset))
    wrong = numbers[numbers % 1 != 0]  # NaN among them
    if len(wrong):
        raise StreamDataError(f"{name}: {wrong[0]} is not an integer")
    return numbers.astype(np.int64)


def _scenario(classes: tuple[tuple[int, ...], ...], tasks: np.ndarray, experiences: np.ndarray) -> str:
    """Returns what a benchmark is: task labels tell experiences apart, or classes do, or only the images."""
    if len(classes) > 1 and np.array_equal(tasks, experiences):
        return "task_incremental"
    return "domain_incremental" if len(classes) > 1 and set(classes[0]) & set(classes[1]) else "class_incremental"


def _digest(samples: DatasetSamples, split: dict[str, np.ndarray], *attributes: np.ndarray) -> str:
    """Returns a sha256 of which samples are where, with what labels; of the images themselves, of a few.

    Images with random transforms differ at each reading, so only those of the test stream count.
    """
    digest = hashlib.sha256(split_digest(split).encode())
    for values in attributes:
        digest.update(values.tobytes())
    rows = split["test"]
    for row in rows[np.linspace(0, len(rows) - 1, min(COMPARED, len(rows))).astype(np.int64)]:
        digest.update(samples[int(row)][0].numpy().tobytes())
    return digest.hexdigest()
