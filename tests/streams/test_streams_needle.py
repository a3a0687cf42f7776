"""Needles in text, read by a reader that knows the words alone."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import StreamDataError, build_stream
from streams.needle import FOLLOWERS, TASKS, NeedleOptions, Vocabulary

SMALL = {"train": 20, "validation": 3, "test": 4}


def read(tokens):
    """What the question's key is bound to, and where its digits stand: by its words, as a person would."""
    values, places, at = {}, {}, 0
    while tokens[at] != "?":
        if tokens[at] in ("needle", "let"):
            key = tokens[at + 1]
            if tokens[at + 2] == "=":
                values[key], places[key] = values[tokens[at + 3]], places[tokens[at + 3]]
                at += 3
            else:
                end = at + 2
                while tokens[end].isdigit():
                    end += 1
                values[key], places[key] = tokens[at + 2 : end], at
                at = end - 1
        at += 1
    key = tokens[at + 1]
    return values[key], at - places[key], len(values)


def words_of(samples, row):
    """Tokens, and the targets of those that have one, by place."""
    pairs = [part.partition("->") for part in samples.decode(row).split(" ")]
    return [token for token, _, _ in pairs], {at: target for at, (_, arrow, target) in enumerate(pairs) if arrow}


@settings(max_examples=8, deadline=None)
@given(
    length=st.integers(48, 90),
    needles=st.integers(2, 6),
    hops=st.integers(1, 5),
    digits=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_the_answer_is_in_the_text(length, needles, hops, digits, seed):
    options = NeedleOptions(length=length, needles=needles, hops=hops, digits=digits, keys=8, **SMALL)
    stream = build_stream("needle", options, seed=seed)
    assert list(stream.class_names) == list(TASKS)
    bound = {"single": 1, "multi_key": needles, "variable_tracking": hops + 1}
    each = len(stream.samples) // len(TASKS)
    for row in range(len(stream.samples)):
        tokens, targets = words_of(stream.samples, row)
        answer, distance, found = read(tokens)
        assert len(tokens) == length
        assert [targets[at] for at in sorted(targets)] == answer == tokens[-digits:]
        assert sorted(targets) == list(range(length - digits - 1, length - 1))
        distances = stream.samples.distances[row]
        assert distances[distances > 0].tolist() == [distance] * digits
        assert found in bound.values()
    assert each == sum(SMALL.values())


def test_words_have_few_followers_and_are_the_same_for_all_seeds():
    after = {}
    for seed in (0, 1):
        stream = build_stream("needle", NeedleOptions(length=200, task_types=["single"], words=64, **SMALL), seed=seed)
        for row in range(len(stream.samples)):
            tokens, _ = words_of(stream.samples, row)
            for word, following in itertools.pairwise(tokens):
                if word.startswith("w") and following.startswith("w"):
                    after.setdefault(word, set()).add(following)
    # A needle hides what was there, so a word behind one may follow it by any chain of words.
    assert len(after) == 64
    assert max(map(len, after.values())) == FOLLOWERS


def test_other_lengths_hold_every_task():
    options = NeedleOptions(length=48, **SMALL)
    stream = build_stream("needle", options, seed=0)
    longer = stream.at_length(1024, 6, "test")
    for row in range(6):
        tokens, targets = words_of(longer, row)
        answer, _, found = read(tokens)
        assert [targets[at] for at in sorted(targets)] == answer
        assert found == (1, 1, 4, 4, 3, 3)[row]
    assert Vocabulary(options.keys, options.words).size == stream.n_classes


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"task_types": ["double"]}, "task_types: unknown task 'double': known: single, multi_key, variable_tracking"),
        ({"task_types": []}, "task_types: choose at least one of single"),
        ({"length": 24, "needles": 4}, "length=24: 4 needles of multi_key and a query need at least 25 tokens"),
        ({"keys": 3, "needles": 4}, "keys=3: too few for 4 needles of multi_key"),
    ],
)
def test_what_cannot_be(options, line):
    with pytest.raises(StreamDataError, match=f"^{line}"):
        build_stream("needle", NeedleOptions(**{**SMALL, **options}), seed=0)
