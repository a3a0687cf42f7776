"""The best trial and the Pareto front, against brute force."""

from hypothesis import given
from hypothesis import strategies as st

from cl_ovq.sweeps.records import DONE, FAILED, Record, best, mean, pareto_front, read_records

OBJECTIVES = {"accuracy": "max", "memory_bytes": "min"}
values = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


def make(pairs):
    return [Record(i, {}, DONE, {"accuracy": a, "memory_bytes": b}) for i, (a, b) in enumerate(pairs)]


@given(values)
def test_the_front_is_what_nothing_beats(pairs):
    records = make(pairs)
    wanted = {i for i, (a, b) in enumerate(pairs) if not any(c >= a and d <= b and (c, d) != (a, b) for c, d in pairs)}
    assert {record.trial for record in pareto_front(records, OBJECTIVES)} == wanted


@given(values)
def test_the_best_has_the_first_objective_and_then_the_others(pairs):
    found = best(make(pairs), OBJECTIVES)
    if not pairs:
        assert found is None
        return
    assert (found.values["accuracy"], -found.values["memory_bytes"]) == max((a, -b) for a, b in pairs)


def test_only_trials_that_ran_to_their_end_count():
    records = [Record(0, {}, FAILED), Record(1, {}, "running"), Record(2, {}, "stopped", history=[(1, 0.9)])]
    assert best(records, OBJECTIVES) is None
    assert pareto_front(records, OBJECTIVES) == []


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = Record(3, {"a": 1, "b": [1, 2]}, DONE, {"accuracy": 0.5}, 4, error=None, deaths=2)
    record.write(tmp_path)
    assert read_records(tmp_path) == {3: record}


def test_a_mean_of_something_undefined_is_undefined():
    assert mean([1.0, 2.0]) == 1.5
    assert mean([1.0, None]) is None
    assert mean([1.0, float("nan")]) is None
    assert mean([]) is None
