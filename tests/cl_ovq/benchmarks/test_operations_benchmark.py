"""What `cl-ovq bench operations` measures, on digits."""

from dataclasses import asdict

import pytest

from cl_ovq.benchmarks.operations import measure_memory_head, measure_transformer, operations_table
from cl_ovq.evaluation.aggregates import aggregate


def test_a_memory_head_merges_shrinks_and_forgets():
    found = measure_memory_head(0, "split_digits_memory")
    assert found["sequential"] > 0.95
    assert found["merged by task"] == pytest.approx(found["sequential"], abs=0.01)
    assert found["merged by shard"] > 0.95
    assert found["sequential"] >= found["resized to 50"] > 0.9
    # Its task's classes are never named again, and told apart by chance; the others gain from a smaller choice.
    assert found["after forgetting: the task"] == 0
    assert found["after forgetting: the task, among its classes"] == pytest.approx(0.5, abs=0.1)
    assert found["after forgetting: the others"] >= found["before forgetting: the others"]
    assert found["after forgetting: the others"] == pytest.approx(found["never learned: the others"], abs=0.01)


def test_a_transformers_dictionaries_do_too(tiny_path):
    found = measure_transformer(0, str(tiny_path))
    assert {"sequential", "merged by task", "empty dictionaries", "resized to 8", "learned with 8"} <= set(found)
    assert all(0 <= accuracy <= 1 for accuracy in found.values())
    assert operations_table("x", {"a": asdict(aggregate([0.5]))}).rows[0][1][0].text == "0.500"
