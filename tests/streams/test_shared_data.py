"""Data sets that are handed over are not read again, and what one process collects it does not keep."""

import numpy as np
import pytest
import torch

from streams import build_stream, shared_data
from streams.digits import read_digits
from streams.shared_data import collecting, providable, provide


@pytest.fixture
def reads(monkeypatch):
    """A reader, the arguments that it was called with, and no data handed over."""
    monkeypatch.setattr(shared_data, "_PROVIDED", {})
    calls = []

    @providable
    def read_numbers(folder=None, *, part="train"):
        calls.append((folder, part))
        return np.arange(3) if part == "train" else np.arange(5)

    return read_numbers, calls


def test_what_is_collected_is_provided_elsewhere_by_its_arguments(reads):
    read, calls = reads
    with collecting() as data:
        first, other = read("a"), read("a", part="test")
    assert len(data) == 2
    assert read("a") is not first
    assert len(calls) == 3
    provide(data)
    assert read("a") is first
    assert read("a", part="test") is other
    assert len(calls) == 3
    read("b")
    assert calls[-1] == ("b", "train")


def test_what_was_provided_is_collected_too(reads):
    read, _ = reads
    with collecting() as data:
        first = read()
    provide(data)
    with collecting() as again:
        read()
    assert [value is first for value in again.values()] == [True]


def test_nothing_is_kept_after_an_error(reads):
    read, calls = reads

    def fail():
        with collecting():
            read()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    read()
    assert len(calls) == 2
    assert shared_data._COLLECTED == []


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_stream_of_provided_data_is_the_stream(monkeypatch):
    monkeypatch.setattr(shared_data, "_PROVIDED", {})
    expected = build_stream("split_digits", seed=3)
    with collecting() as data:
        read_digits()
    for images in data.values():
        images.inputs.flags.writeable = False  # as Ray's object store hands it over
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: pytest.fail("read again"))
    provide(data)
    found = build_stream("split_digits", seed=3)
    assert found.provenance == expected.provenance
    rows = torch.tensor([5, 7])
    assert found.samples.gather(rows).equal(expected.samples.gather(rows))
