"""Avalanche's own benchmarks as streams: the samples, labels and batches are those that Avalanche gives."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, benchmark_with_validation_stream, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TransformGroups
from torch.utils.data import Dataset, TensorDataset

from streams import Stream, StreamDataError


class Lazy(Dataset):
    """Images that are made when they are asked for."""

    def __init__(self, labels, shape=(3, 4, 4), start=0):
        self.targets, self.shape, self.start, self.read = labels, shape, start, 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.read += 1
        return torch.full(self.shape, float(self.start + index)), self.targets[index]


def labelled(data):
    return AvalancheDataset([data], data_attributes=[DataAttribute(data.targets, "targets")])


def tensors(count=40, classes=4, shape=(1, 4, 4)):
    draws = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.rand(count, *shape, generator=draws), torch.arange(count) % classes)
    data.targets = (torch.arange(count) % classes).tolist()
    return data


@pytest.mark.parametrize(("task_labels", "scenario"), [(False, "class_incremental"), (True, "task_incremental")])
def test_new_classes_on_tensors(task_labels, scenario):
    benchmark = nc_benchmark(tensors(), tensors(20), n_experiences=2, task_labels=task_labels, seed=3)
    stream = Stream.from_avalanche(benchmark, name="mine")
    assert (stream.name, stream.scenario, stream.n_classes, stream.kind) == ("mine", scenario, 4, "classes")
    assert stream.samples.sample_shape == (1, 4, 4)
    for split in ("train", "test"):
        theirs, ours = benchmark.streams[split], stream.benchmark.streams[split]
        for one, other in zip(theirs, ours, strict=True):
            assert list(one.dataset.targets) == list(other.dataset.targets)
            assert list(one.dataset.targets_task_labels) == list(other.dataset.targets_task_labels)
            for (x, y, *_), (image, label, *_) in zip(one.dataset, other.dataset, strict=True):
                assert torch.equal(x, image)
                assert y == label
    assert [set(classes) for classes in stream.classes_per_experience] == [
        set(experience.classes_in_this_experience) for experience in benchmark.train_stream
    ]


def test_lazy_data_sets_are_read_when_they_are_asked_for():
    parts = [Lazy([0, 1] * 10), Lazy([2, 3, 2], start=100)]
    tests = [Lazy([1, 0], start=200), Lazy([3, 2], start=300)]
    benchmark = benchmark_from_datasets(
        train=[labelled(part) for part in parts],
        test=[labelled(part) for part in tests],
    )
    stream = Stream.from_avalanche(benchmark)
    assert sum(part.read for part in parts) <= 1
    rows = torch.tensor([21, 2, 25])
    assert stream.samples.gather(rows)[:, 0, 0, 0].tolist() == [101.0, 2.0, 300.0]
    assert stream.samples.targets[rows].tolist() == [3, 0, 3]
    assert stream.provenance["sizes"] == {"train": 23, "validation": 0, "test": 4}


def test_transforms_are_those_of_training_and_of_evaluation():
    groups = TransformGroups({"train": (lambda x: x + 0.5, None), "eval": (lambda x: x + 10, None)})
    data = AvalancheDataset([Lazy([0, 1])], data_attributes=[DataAttribute([0, 1], "targets")], transform_groups=groups)
    stream = Stream.from_avalanche(benchmark_from_datasets(train=[data], test=[data]))
    assert [stream.samples[row][0].unique().tolist() for row in range(4)] == [[0.5], [1.5], [10.0], [11.0]]


def test_a_validation_stream_is_taken_over():
    benchmark = benchmark_with_validation_stream(
        nc_benchmark(tensors(), tensors(20), n_experiences=2, task_labels=False), validation_size=0.2
    )
    assert "validation" in Stream.from_avalanche(benchmark).benchmark.streams


def test_vectors_are_images_of_one_row():
    benchmark = nc_benchmark(tensors(shape=(7,)), tensors(20, shape=(7,)), n_experiences=2, task_labels=False)
    assert Stream.from_avalanche(benchmark).samples.sample_shape == (7,)


def test_experiences_with_the_same_classes_are_domains():
    parts = [labelled(Lazy([0, 1])) for _ in range(2)]
    assert Stream.from_avalanche(benchmark_from_datasets(train=parts, test=parts)).scenario == "domain_incremental"


def test_the_digest_tells_data_apart():
    def digest(start, labels=(0, 1)):
        parts = [labelled(Lazy([*labels], start=start))]
        return Stream.from_avalanche(benchmark_from_datasets(train=parts, test=parts)).provenance["split_sha256"]

    assert len({digest(0), digest(1), digest(0, (1, 0))}) == 3
    assert digest(0) == digest(0)


def benchmark_of(train, test=None):
    def wrapped(parts):
        return [labelled(part) for part in parts]

    return benchmark_from_datasets(train=wrapped(train), test=wrapped(test or [Lazy([0, 1])]))


def with_tasks(train, test):
    """A benchmark whose experiences are tasks, with these classes in the training and in the test stream."""

    def wrapped(parts):
        return [
            AvalancheDataset(
                [Lazy(labels)],
                data_attributes=[
                    DataAttribute(labels, "targets"),
                    DataAttribute([task] * len(labels), "targets_task_labels"),
                ],
            )
            for task, labels in enumerate(parts)
        ]

    return benchmark_from_datasets(train=wrapped(train), test=wrapped(test))


class Words(Lazy):
    def __getitem__(self, index):
        return "text", self.targets[index]


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: benchmark_of([Lazy([0]), Lazy([1])]), "2 training experiences but 1 test experiences"),
        (lambda: benchmark_of([Words([0, 1])]), "it is str"),
        (lambda: benchmark_of([Lazy([0, 1], shape=(4, 4))]), r"\[4, 4\]"),
        (lambda: benchmark_of([Lazy([])]), "experience 1 of the train stream is empty"),
        (lambda: benchmark_from_datasets(train=[labelled(Lazy([0]))]), "no test stream"),
        (
            lambda: benchmark_from_datasets(train=[AvalancheDataset([Lazy([0])])], test=[labelled(Lazy([0]))]),
            "experience 1 of the train stream has no targets",
        ),
        (lambda: benchmark_of([Lazy([0, -1])]), "class -1 in experience 1 of the train stream: classes start at 0"),
        (
            lambda: benchmark_of([Lazy([0, 2])]),
            "class 1 in experience 1 of the test stream: no training experience",
        ),
        (lambda: benchmark_of([Lazy([0.5, 1])]), r"targets: 0\.5 is not an integer"),
        (
            lambda: benchmark_of([Lazy([0, 1]), Lazy([2, 3])], [Lazy([2, 3]), Lazy([0, 1])]),
            "class 2 in experience 1 of the test stream: it is in training experience 2, not 1: an "
            "experience of a class_incremental stream is evaluated on its own classes",
        ),
        (
            lambda: benchmark_of([Lazy([0, 1]), Lazy([2, 3])], [Lazy([0, 1]), Lazy([1, 2, 3])]),
            "class 1 in experience 2 of the test stream: it is in training experience 1, not 2",
        ),
        (
            lambda: benchmark_of([Lazy([0, 1]), Lazy([2, 3])], [Lazy([0, 1]), Lazy([2, 2])]),
            "class 3 in experience 2 of the train stream: test experience 2 has no sample of it",
        ),
        (
            lambda: benchmark_of([Lazy([0, 1])], [Lazy([0])]),
            "class 1 in experience 1 of the train stream: test experience 1 has no sample of it",
        ),
        (
            lambda: with_tasks([[0, 1], [2, 3]], [[2, 3], [0, 1]]),
            "class 2 in experience 1 of the test stream: .* of a task_incremental stream",
        ),
        (
            lambda: with_tasks([[0, 1], [2, 3]], [[0, 1, 2, 3], [0, 1, 2, 3]]),
            "class 2 in experience 1 of the test stream: .* of a task_incremental stream",
        ),
        (
            lambda: benchmark_from_datasets(
                train=[labelled(Lazy([0])), labelled(Lazy([1]))],
                valid=[labelled(Lazy([1])), labelled(Lazy([0]))],
                test=[labelled(Lazy([0])), labelled(Lazy([1]))],
            ),
            "class 1 in experience 1 of the validation stream: it is in training experience 2, not 1",
        ),
    ],
)
def test_what_cannot_be_a_stream_is_refused(make, part):
    with pytest.raises((StreamDataError, ValueError), match=part):
        Stream.from_avalanche(make())


@pytest.mark.parametrize(
    ("train", "test", "scenario"),
    [
        ([[0, 1], [2, 3]], [[0, 1, 2, 3], [3, 2, 1, 0]], "class_incremental"),  # the whole test set, every time
        ([[0, 1, 2], [0, 1]], [[0, 1], [0, 1, 2]], "domain_incremental"),
        ([[0, 1], [1, 2], [2, 3]], [[0, 1], [1], [0, 3]], "domain_incremental"),  # classes come back
    ],
)
def test_test_experiences_that_are_taken_as_they_are(train, test, scenario):
    stream = Stream.from_avalanche(benchmark_of([Lazy(part) for part in train], [Lazy(part) for part in test]))
    assert stream.scenario == scenario
    assert [list(experience.dataset.targets) for experience in stream.benchmark.streams["test"]] == test


def test_a_part_of_the_validation_stream_may_lack_a_class():
    benchmark = benchmark_from_datasets(
        train=[labelled(Lazy([0, 1]))], valid=[labelled(Lazy([0]))], test=[labelled(Lazy([0, 1]))]
    )
    assert Stream.from_avalanche(benchmark).provenance["sizes"]["validation"] == 1


def test_class_names_are_one_per_class():
    benchmark = benchmark_of([Lazy([0, 1])])
    assert Stream.from_avalanche(benchmark, class_names=["cat", "dog"]).class_names == ("cat", "dog")
    with pytest.raises(StreamDataError, match="1 names, but the benchmark has 2"):
        Stream.from_avalanche(benchmark, class_names=["cat"])


def test_samples_of_another_shape_are_named():
    class Growing(Lazy):
        def __getitem__(self, index):
            return torch.zeros(1, 4 + index, 4), self.targets[index]

    stream = Stream.from_avalanche(benchmark_of([Growing([0, 1])], [Lazy([0, 1], shape=(1, 4, 4))]))
    with pytest.raises(StreamDataError, match=r"sample 1 has shape \[1, 5, 4\]"):
        stream.samples.gather(torch.tensor(np.array([1])))


@pytest.mark.parametrize("what", [3, None, TensorDataset(torch.zeros(2))])
def test_what_is_no_benchmark(what):
    with pytest.raises(StreamDataError, match=r"^a \w+ is not an Avalanche benchmark$"):
        Stream.from_avalanche(what)
