"""Episodes: which classes and samples they have, against a draw written out class by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streams import StreamDataError, build_stream, rows_of
from streams.counter_rng import Draws
from streams.digits import read_digits
from streams.episodes import FeatureEpisodeOptions, InstalledEpisodeOptions
from streams.split import split_rows

PARTS = ("train", "validation", "test")


def episode(seed=0, **changes):
    return build_stream("episodes_digits", InstalledEpisodeOptions(**changes), seed=seed)


def content(stream, part):
    """The samples of each experience as bytes, with the class of the data set."""
    return [
        {
            (stream.class_names[int(label)], image.numpy().tobytes())
            for image, label in zip(
                stream.samples.gather(rows_of(one.dataset)), stream.samples.targets[rows_of(one.dataset)], strict=True
            )
        }
        for one in stream.benchmark.streams[part]
    ]


@pytest.mark.parametrize("sizes", [(3, 2, 4, 6), (9, 1, 1, 1), (1, 10, 7, None), (2, 3, 5, 12)])
def test_an_episode_is_the_draw_written_out(sizes):
    tasks, each, samples, questions = sizes
    stream = episode(7, tasks=tasks, classes_per_task=each, samples=samples, questions=questions)
    data = read_digits()
    parts = split_rows(data.targets, n_test=data.n_test, validation_fraction=0.1, test_fraction=data.test_fraction)
    order = Draws("episode", "classes", 7).orders(1, 10)[0]
    for part in PARTS:
        keys = Draws("episode", part, 7).bits(len(data.targets))
        most = samples if part == "train" else questions
        expected = []
        for task in range(tasks):
            expected.append(set())
            for number in order[task * each : (task + 1) * each]:
                rows = [row for row in parts[part] if data.targets[row] == number]
                for row in sorted(rows, key=lambda row: keys[row])[:most]:
                    image = (torch.from_numpy(data.inputs[row]).float() / data.divisor).numpy().tobytes()
                    expected[-1].add((data.class_names[number], image))
        assert content(stream, part) == expected
    assert stream.n_classes == len(stream.class_names) == tasks * each
    assert stream.classes_per_experience == tuple(tuple(range(t * each, (t + 1) * each)) for t in range(tasks))
    for number, one in enumerate(stream.benchmark.streams["train"]):
        assert sorted(one.classes_in_this_experience) == list(stream.classes_per_experience[number])
        assert len(one.dataset) == each * samples


def test_a_longer_episode_begins_with_the_shorter_one():
    short = episode(tasks=3, classes_per_task=2, samples=3, questions=4)
    long = episode(tasks=5, classes_per_task=2, samples=6, questions=9)
    for part, most in zip(PARTS, (2 * 3, 2 * 4, 2 * 4), strict=True):
        few, many = content(short, part), content(long, part)
        assert [len(found) for found in few] == [most] * 3
        assert all(one < other for one, other in zip(few, many, strict=False))


def test_the_seed_draws_classes_and_samples_and_nothing_that_is_held_out():
    first, second = (episode(seed, tasks=5, classes_per_task=2, samples=8, questions=9) for seed in (0, 1))
    assert first.class_names != second.class_names
    assert first.provenance["split_sha256"] != second.provenance["split_sha256"]
    assert first.samples.sha256() == episode(0, tasks=5, classes_per_task=2, samples=8, questions=9).samples.sha256()
    learned, asked = (set.union(*content(first, part)) for part in ("train", "test"))
    other, others_asked = (set.union(*content(second, part)) for part in ("train", "test"))
    assert learned != other
    assert asked != others_asked
    assert not (learned | other) & (asked | others_asked)


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_the_model_is_told_the_task_where_it_is_asked_for(scenario):
    stream = episode(scenario=scenario, tasks=3, questions=2)
    assert stream.scenario == scenario
    for part in PARTS:
        for number, one in enumerate(stream.benchmark.streams[part]):
            assert set(one.dataset.targets_task_labels) == {number if scenario == "task_incremental" else 0}


def features(tmp_path, counts):
    """A file of vectors, so many of each class."""
    targets = np.repeat(np.arange(len(counts)), counts)
    np.savez(tmp_path / "vectors.npz", features=np.arange(2 * len(targets), dtype=np.float32).reshape(-1, 2), y=targets)
    return str(tmp_path / "vectors.npz")


def test_a_class_with_too_few_samples_is_not_drawn(tmp_path):
    data = features(tmp_path, [20, 4, 20, 20, 4])
    options = FeatureEpisodeOptions(
        data=data, cache=False, tasks=3, classes_per_task=1, samples=8, questions=4, test_fraction=0.4
    )
    for seed in range(5):
        assert sorted(build_stream("episodes_features", options, seed=seed).class_names) == ["0", "2", "3"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"tasks": 6},
            "tasks=6: with 2 classes each, they need 12, but in digits only 10 of the 10 classes have enough samples",
        ),
        ({"samples": 131}, "tasks=5: .* in digits only 5 of the 10 .*: 131 in train .at most 131., 1 in validation"),
        ({"questions": 37}, "tasks=5: .* in digits only 1 of the 10 .* 37 in test .at most 37."),
        ({"samples": 0}, "samples=0: must be at least 1"),
    ],
)
def test_too_few_classes_or_samples_is_a_line(changes, line):
    with pytest.raises(StreamDataError, match=f"^{line}") as error:
        episode(**changes)
    assert "\n" not in str(error.value)


def test_a_thousand_tasks_of_one_class(tmp_path):
    data = features(tmp_path, [12] * 1100)
    stream = build_stream(
        "episodes_features",
        FeatureEpisodeOptions(
            data=data, cache=False, tasks=1000, classes_per_task=1, samples=5, questions=2, validation_fraction=0
        ),
        seed=0,
    )
    assert stream.provenance["sizes"] == {"train": 5000, "validation": 0, "test": 2000}
    assert len(set(stream.class_names)) == 1000
    assert [len(one.dataset) for one in stream.benchmark.streams["train"]] == [5] * 1000
