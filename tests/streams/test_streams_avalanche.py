"""What Avalanche makes of a stream: items, replay buffers, a strategy; each against the stream's own tensors."""

from __future__ import annotations

import warnings

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.storage_policy import ClassBalancedBuffer, ExperienceBalancedBuffer, ReservoirSamplingBuffer
from torch.utils.data import DataLoader

from streams import SplitOptions, build_stream, rows_of
from streams.options import SCENARIOS


def assert_items_are_the_streams(dataset: AvalancheDataset, stream, *, task_of=lambda row: 0) -> None:
    """Every item of Avalanche's per-sample path equals, bit for bit, what its row says."""
    rows = rows_of(dataset)
    assert rows.dtype == torch.int64
    assert rows.shape == (len(dataset),)
    images, targets = stream.samples.gather(rows), stream.samples.targets[rows]
    assert images.dtype == torch.float32
    for i, (x, y, t) in enumerate(dataset[i] for i in range(len(dataset))):
        assert x.dtype == torch.float32
        assert torch.equal(x, images[i])
        assert y == targets[i] == dataset.targets[i]
        assert t == task_of(int(rows[i])) == dataset.targets_task_labels[i]


def task_by_row(stream):
    experience_of = {c: e for e, classes in enumerate(stream.original_classes) for c in classes}
    return lambda row: experience_of[int(stream.samples.targets[row])]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_items_equal_gathered_batches(digits, scenario):
    stream = digits(scenario, 3)
    task_of = task_by_row(stream) if scenario == "task_incremental" else lambda row: 0
    for experiences in stream.benchmark.streams.values():
        for experience in experiences:
            assert_items_are_the_streams(experience.dataset, stream, task_of=task_of)
            assert_items_are_the_streams(experience.dataset.eval(), stream, task_of=task_of)


def test_data_loader_gives_gathered_batches(digits):
    stream = digits()
    dataset = stream.benchmark.streams["train"][1].dataset
    rows = rows_of(dataset)
    for i, (x, y, t) in enumerate(DataLoader(dataset, batch_size=32, collate_fn=dataset.collate_fn)):
        here = rows[32 * i : 32 * (i + 1)]
        assert torch.equal(x, stream.samples.gather(here))
        assert torch.equal(y, stream.samples.targets[here])
        assert torch.equal(t, torch.zeros(len(here), dtype=torch.int64))


def test_rows_survive_subset_and_concat(digits):
    stream = digits("task_incremental")
    first, second = (stream.benchmark.streams["train"][e].dataset for e in (0, 3))
    picked = first.subset([5, 0, 7]).concat(second.subset([2, 2])).subset([4, 1, 0])
    expected = torch.stack([rows_of(second)[2], rows_of(first)[0], rows_of(first)[5]])
    assert torch.equal(rows_of(picked), expected)
    assert_items_are_the_streams(picked, stream, task_of=task_by_row(stream))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("buffer_type", [ReservoirSamplingBuffer, ExperienceBalancedBuffer, ClassBalancedBuffer])
def test_replay_buffers_keep_rows(digits, scenario, buffer_type):
    stream = digits(scenario, 5)
    task_of = task_by_row(stream) if scenario == "task_incremental" else lambda row: 0
    buffer = buffer_type(max_size=60)
    assert rows_of(buffer.buffer).shape == (0,)
    seen: set[int] = set()
    for experience in stream.benchmark.streams["train"]:
        buffer.post_adapt(None, experience)
        seen |= set(rows_of(experience.dataset).tolist())
        kept = rows_of(buffer.buffer).tolist()
        assert len(kept) == len(set(kept)) == 60
        assert set(kept) <= seen
        assert_items_are_the_streams(buffer.buffer, stream, task_of=task_of)
        assert_items_are_the_streams(experience.dataset.concat(buffer.buffer), stream, task_of=task_of)


def test_classes_timeline(digits):
    stream = digits()
    before: set[int] = set()
    for experience, classes in zip(stream.benchmark.streams["train"], stream.classes_per_experience, strict=True):
        assert experience.previous_classes == before
        before |= set(classes)
        assert experience.classes_seen_so_far == before
        assert experience.future_classes == set(range(10)) - before


def test_nothing_deprecated_is_used():
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        build_stream("split_digits", SplitOptions(scenario="task_incremental"), seed=0)
    assert [str(warning.message) for warning in given] == []


def test_an_avalanche_strategy_learns_from_it(digits):
    """The whole of Avalanche's own path: its data loader, its evaluation, a plain linear classifier."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    torch.manual_seed(0)
    stream = digits(experiences=1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.02),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=64,
        train_epochs=5,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    train, validation = (stream.benchmark.streams[name] for name in ("train", "validation"))
    strategy.train(train[0], num_workers=0)
    (accuracy,) = strategy.eval(validation, num_workers=0).values()
    rows = rows_of(validation[0].dataset)
    predicted = model(stream.samples.gather(rows)).argmax(1)
    assert accuracy == pytest.approx((predicted == stream.samples.targets[rows]).float().mean().item())
    assert 0.8 < accuracy < 1.0
