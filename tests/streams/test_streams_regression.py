"""In-context regression: the functions are found again by least squares, exactly."""

import hashlib

import numpy as np
import pytest
import torch

from streams import StreamDataError, build_stream, rows_of
from streams.regression import FAMILIES, RegressionOptions

SMALL = {"train": 20, "validation": 5, "test": 5}
FEATURES = {
    "linear": lambda x: x,
    "sparse": lambda x: x[:, ::2],
    "quadratic": lambda x: 2 * x**2 - 1,
    "sign": np.sign,
}


def build(**changes):
    return build_stream("regression", RegressionOptions(**{**SMALL, **changes}), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_follow_from_the_examples_of_their_function(family):
    stream = build(experiences=1, shift="none", family=family, dimensions=4, functions=3, examples=12, questions=6)
    assert (stream.kind, stream.n_classes, stream.samples.features) == ("values", 1, 4 + 2 + 3)
    for row in range(len(stream.samples)):
        inputs, targets = stream.samples.inputs[row].double().numpy(), stream.samples.targets[row].double().numpy()
        x, y, asked, which = inputs[:, :4], inputs[:, 4], inputs[:, 5] == 1, inputs[:, 6:].argmax(1)
        assert (inputs[:, 6:].sum(1) == 1).all()
        assert asked.tolist() == [False] * 36 + [True] * 6
        assert np.isnan(targets[:36]).all()
        assert (y[36:] == 0).all()
        for function in range(3):
            mine = which == function
            assert (mine & ~asked).sum() == 12
            design = FEATURES[family](x[mine & ~asked])
            weights, *_ = np.linalg.lstsq(design, y[mine & ~asked], rcond=None)
            answers = FEATURES[family](x[mine & asked]) @ weights
            np.testing.assert_allclose(answers, targets[mine & asked], atol=1e-6)


def test_values_are_exact_in_single_precision():
    samples = build(dimensions=64, experiences=4).samples
    values = torch.cat((samples.inputs.flatten(), samples.targets[~samples.targets.isnan()]))
    assert torch.equal(values * 2**20, (values * 2**20).round())
    assert values.abs().max() < 16


def test_experiences_shift():
    names = {
        shift: build(shift=shift, experiences=2).class_names for shift in ("none", "family", "functions", "examples")
    }
    assert names == {
        "none": ("part 1", "part 2"),
        "family": ("linear", "sparse"),
        "functions": ("2 functions", "4 functions"),
        "examples": ("24 examples", "48 examples"),
    }
    stream = build(shift="functions", experiences=2)
    marks = [
        stream.samples.inputs[rows_of(e.dataset), :, 6:].amax((0, 1)).tolist() for e in stream.benchmark.streams["test"]
    ]
    assert marks == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_longer_sequences_have_more_examples():
    stream = build(shift="none")
    samples = stream.at_length(408, 6, "test")
    assert samples.inputs.shape == (6, 408, 8)
    assert ((~samples.targets.isnan()).sum(1) == 8).all()
    with pytest.raises(StreamDataError, match="9 tokens are too few for 8 queries"):
        stream.at_length(9, 1, "test")


def test_what_was_generated_once_is_generated_forever():
    samples = build(experiences=4).samples
    assert hashlib.sha256(samples.inputs.numpy().tobytes()).hexdigest()[:16] == GOLDEN


GOLDEN = "89cd678c0c419239"


def test_vectors_read_in_numbers():
    lines = build().samples.decode(0).splitlines()
    assert len(lines) == 56
    assert " -> " in lines[-1]
    assert " -> " not in lines[0]
