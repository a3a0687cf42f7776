"""Data that a stream cannot be made of is refused before anything runs, in a line that names class and experience."""

from __future__ import annotations

import numpy as np
import pytest

from streams import SplitOptions, StreamDataError
from streams.options import TransformOptions
from streams.sequences import SequenceSamples, sequence_stream
from streams.split import LabelledData, build_split_stream
from streams.transformed import build_permuted_stream

NAMES = ("zero", "one", "two", "three")


def images(*targets: int, n_test: int = 0) -> LabelledData:
    labels = np.array(targets, dtype=np.uint8)
    pixels = np.zeros((len(labels), 1, 2, 2), dtype=np.uint8)
    return LabelledData("Shapes", "test", {}, pixels, labels, 255.0, NAMES, n_test)


def split(data: LabelledData, **options):
    options = SplitOptions(experiences=2, shuffle_classes=False, **options)
    return build_split_stream("split_shapes", data, options, seed=0)


FULL = [0, 1, 2, 3] * 5


@pytest.mark.parametrize(
    ("data", "line"),
    [
        pytest.param(
            images(*[0, 1, 2] * 10),
            "Shapes: class 3 ('three') of experience 2 has no samples in the train stream, but 0 in the whole data set",
            id="a class is missing",
        ),
        pytest.param(
            images(*[0, 2, 3] * 10, 1),
            "Shapes: class 1 ('one') of experience 1 has no samples in the train stream, but 1 in the whole data set",
            id="a class has one sample",
        ),
        pytest.param(
            images(*[0, 1, 3] * 10, *[0, 1, 2, 3], n_test=4),
            "Shapes: class 2 ('two') of experience 2 has no samples in the train stream, but 1 in the whole data set",
            id="the official test set has a class that training lacks",
        ),
        pytest.param(
            images(*FULL, *[0, 1, 2], n_test=3),
            "Shapes: class 3 ('three') of experience 2 has no samples in the test stream, but 5 in the whole data set",
            id="the official test set lacks a class",
        ),
        pytest.param(
            images(*[0, 1] * 10), "Shapes: class 2 ('two') of experience 2 has no samples", id="an experience is empty"
        ),
        pytest.param(images(*FULL, 7), "Shapes: label 7 is not one of its 4 classes", id="a label without a class"),
    ],
)
def test_faulty_images(data, line):
    with pytest.raises(StreamDataError) as error:
        split(data)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    with pytest.raises(StreamDataError) as error:
        build_permuted_stream("permuted_shapes", data, TransformOptions(experiences=2), seed=0)
    assert str(error.value).startswith(
        line.replace("experience 1", "every experience").replace("experience 2", "every experience")
    )


def test_few_samples_are_enough_without_a_validation_stream():
    pair = images(*[0, 1, 2, 3] * 2)
    with pytest.raises(
        StreamDataError, match=r"^Shapes: class 0 \('zero'\) of experience 1 has no samples in the train"
    ):
        split(pair)
    assert split(pair, validation_fraction=0.0).provenance["sizes"] == {"train": 4, "validation": 0, "test": 4}


@pytest.mark.parametrize("stream", ["train", "validation", "test"])
def test_an_experience_without_sequences(stream):
    def sequences(count: int) -> SequenceSamples:
        return SequenceSamples(np.zeros((count, 4), dtype=np.int32), np.zeros((count, 4), dtype=np.int64))

    parts = {name: [sequences(3), sequences(3)] for name in ("train", "validation", "test")}
    parts[stream][1] = sequences(0)
    with pytest.raises(
        StreamDataError, match=rf"^mine: experience 2 \('late'\) has no sequences in the {stream} stream$"
    ):
        sequence_stream(
            "mine",
            parts,
            kind="tokens",
            outputs=2,
            experience_names=["early", "late"],
            provenance={},
            blur=0.0,
            seed=0,
        )
