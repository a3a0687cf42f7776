"""In-context recall: every answer found again by reading a sequence as a person would."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import IGNORED, PADDING, StreamDataError, build_stream, rows_of
from streams.recall import RecallOptions, RepeatedRecallOptions

SMALL = {"train": 30, "validation": 8, "test": 8}
RULES = ("recall", "positional_recall", "rebinding")


def options(rule, **changes):
    kind = RecallOptions if rule == "recall" else RepeatedRecallOptions
    if rule == "recall":
        changes.pop("repeats", None)
    return kind(**{**SMALL, **changes})


def build(rule, seed=0, **changes):
    return build_stream(rule, options(rule, **changes), seed=seed)


def read(rule, tokens, targets, keys, values):
    """Check a sequence token by token, and return its questions: place, key and distance to what decides it."""
    bound, asked, questions = {}, {}, []
    answering = binding = None
    for place, (token, target) in enumerate(zip(tokens, targets, strict=True)):
        if token == PADDING:
            assert target == IGNORED
            continue
        if answering is not None:  # the answer follows its question
            assert token == answering
            answering = None
        elif binding is not None:
            assert keys <= token < keys + values
            bound.setdefault(binding, []).append((token, place - 1))
            binding = None
        elif target != IGNORED:
            entries = bound[token]
            if rule == "positional_recall":
                turn = asked.get(token, 0)
                asked[token] = turn + 1
            else:
                turn = len(entries) - 1
            assert target == entries[turn][0]
            questions.append((place, token, place - entries[turn][1]))
            answering = target
        elif token < keys:
            binding = token
        else:
            assert token >= keys + values  # a filler
    return questions, bound


@pytest.mark.parametrize("gaps", ["uniform", "power_law", "end"])
@pytest.mark.parametrize("shift", ["none", "keys", "values", "length", "pairs"])
@pytest.mark.parametrize("rule", RULES)
def test_every_target_is_what_the_rule_says(rule, shift, gaps):
    sizes = {"length": 128, "pairs": 4, "keys": 36, "values": 30, "repeats": 2}
    stream = build(rule, shift=shift, gaps=gaps, **sizes)
    samples = stream.samples
    assert stream.kind == "tokens"
    assert stream.n_classes == 36 + 30 + 8
    for experience in range(3):
        pairs = 4 * 2**experience if shift == "pairs" else 4
        repeats = 1 if rule == "recall" else 2
        seen_keys, seen_values = set(), set()
        for parts in stream.benchmark.streams.values():
            for row in rows_of(parts[experience].dataset).tolist():
                tokens, targets = samples.inputs[row].tolist(), samples.targets[row].tolist()
                questions, bound = read(rule, tokens, targets, 36, 30)
                assert len(bound) == pairs
                assert all(len({value for value, _ in entries}) == repeats for entries in bound.values())
                assert len(questions) == (pairs * repeats if rule == "positional_recall" else pairs)
                for place, _, distance in questions:
                    assert samples.distances[row, place] == distance
                assert (samples.distances[row] > 0).sum() == len(questions)
                length = sum(token != PADDING for token in tokens)
                assert length == (128 * 2**experience if shift == "length" else 128)
                seen_keys |= set(bound)
                seen_values |= {value for entries in bound.values() for value, _ in entries}
                if gaps == "end":
                    assert [place for place, _, _ in questions] == list(range(length - 2 * len(questions), length, 2))
        part = range(12 * experience, 12 * (experience + 1)) if shift == "keys" else range(36)
        assert seen_keys <= set(part)
        assert len(seen_keys) > 0.8 * len(part)
        part = range(36 + 10 * experience, 46 + 10 * experience) if shift == "values" else range(36, 66)
        assert seen_values <= set(part)


def test_power_law_gaps_have_their_weights():
    """With one question, gap g has the chance 1 / g over the sum."""
    stream = build("recall", experiences=1, shift="none", length=18, pairs=1, gaps="power_law", train=4000, keys=60)
    gaps = (stream.samples.distances[:4000].amax(1) // 2).long()
    counts = torch.bincount(gaps, minlength=9)[1:].double()
    weights = 1 / torch.arange(1, 9).double()
    expected = 4000 * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 30


@pytest.mark.parametrize("rule", RULES)
def test_train_validation_and_test_share_no_sequence(rule):
    """Also where there are hardly more sequences than are asked for."""
    sizes = {"length": 8, "pairs": 1, "keys": 4, "values": 4, "fillers": 2, "repeats": 2, "questions": 1}
    stream = build(rule, experiences=1, shift="none", **sizes)
    rows = {tuple(row) for row in stream.samples.inputs.tolist()}
    assert len(rows) == len(stream.samples) == 46


def test_too_few_sequences_are_a_mistake():
    with pytest.raises(StreamDataError, match="fewer than about 46 different sequences: 4 tokens with pairs=1"):
        build("recall", experiences=1, length=4, pairs=1, keys=2, values=2)


def test_a_seed_gives_the_same_stream_and_another_another():
    first, again, other = (build("rebinding", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.samples.inputs, again.samples.inputs)
    assert first.provenance == again.provenance
    assert not torch.equal(first.samples.inputs, other.samples.inputs)


def test_what_was_generated_once_is_generated_forever():
    """Checksums of the first day; a change of them is a change of every result."""
    found = {}
    for rule in RULES:
        samples = build(rule, gaps="power_law", seed=5).samples
        found[rule] = hashlib.sha256(samples.inputs.numpy().tobytes()).hexdigest()[:16]
    assert found == GOLDEN


GOLDEN = {"recall": "8f207832ebefc3da", "positional_recall": "2b0dcd00bae0f48b", "rebinding": "fa34ae60a0be82ae"}


@pytest.mark.parametrize("rule", RULES)
def test_longer_test_sequences_have_the_same_pairs_and_farther_questions(rule):
    stream = build(rule, repeats=2)
    longer = stream.at_length(2048, 9, "test")
    assert longer.inputs.shape == (9, 2048)
    for row in range(9):
        questions, bound = read(rule, longer.inputs[row].tolist(), longer.targets[row].tolist(), 96, 96)
        assert len(bound) == 8
        assert all(longer.distances[row, place] == distance for place, _, distance in questions)
    assert longer.distances.max() > 1000
    others = stream.at_length(2048, 9, "validation")
    assert not (longer.inputs[:, None] == others.inputs[None]).all(-1).any()
    with pytest.raises(StreamDataError, match="need at least"):
        stream.at_length(8, 1, "test")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"length": 65}, "length=65: must be even"),
        ({"length": 30}, "length=30: 8 bindings and 8 queries need at least 32 tokens"),
        ({"keys": 12}, "keys: an experience has only 4, too few for pairs=8"),
        ({"values": 1}, "values: an experience has only 1, but needs 2"),
        ({"questions": 9}, "questions=9: must be at most 8"),
        ({"shift": "key"}, "shift='key': choose one of none, keys, values, length, pairs"),
        ({"blur": 2.0}, "blur=2.0: must be at most 1.0"),
    ],
)
def test_mistakes(changes, line):
    with pytest.raises(StreamDataError) as error:
        build("recall", **changes)
    assert str(error.value).startswith(line)


@settings(max_examples=25)
@given(
    rule=st.sampled_from(RULES),
    pairs=st.integers(1, 5),
    repeats=st.integers(1, 3),
    spare=st.integers(0, 6),
    gaps=st.sampled_from(("uniform", "power_law", "end")),
    seed=st.integers(0, 2**32),
)
def test_any_sizes_that_fit_give_sequences_that_read_right(rule, pairs, repeats, spare, gaps, seed):
    repeats = 1 if rule == "recall" else repeats
    questions = pairs * repeats if rule == "positional_recall" else pairs
    length = 2 * (pairs * repeats + questions + spare)
    from streams.counter_rng import Draws
    from streams.recall import experience_settings, generate

    setting = experience_settings(
        rule,
        options(rule, pairs=pairs, repeats=repeats, length=length, gaps=gaps, shift="none", keys=9, values=7),
        0,
    )
    setting.check()
    found = generate(setting, 5, Draws(seed))
    for tokens, targets in zip(found.inputs.tolist(), found.targets.tolist(), strict=True):
        assert len(read(rule, tokens, targets, 9, 7)[0]) == questions


def test_a_sequence_reads_in_words():
    stream = build("recall", experiences=1, length=8, pairs=1, keys=3, values=30, gaps="end")
    key, value = stream.samples.inputs[0, :2].tolist()
    assert stream.samples.decode(0) == f"k{key} v{value - 3} . . . . k{key}->v{value - 3} v{value - 3}"


def test_blurred_boundaries_mix_neighbours_and_keep_sizes():
    plain = build("recall", train=300, length=32, pairs=4)
    stream = build("recall", train=300, length=32, pairs=4, blur=0.5)
    sharp = [set(rows_of(e.dataset).tolist()) for e in plain.benchmark.streams["train"]]
    mixed = [rows_of(e.dataset).tolist() for e in stream.benchmark.streams["train"]]
    assert [len(part) for part in mixed] == [300] * 3
    assert sorted(row for part in mixed for row in part) == sorted(set().union(*sharp))
    shares = np.array([[len(part & set(rows)) / 300 for part in sharp] for rows in mixed])
    assert (shares.diagonal() > 0.6).all()
    assert shares[0, 1] > 0.05
    assert shares[0, 2] == 0  # half an experience does not reach over a whole one
    assert stream.provenance["sequences_sha256"] == plain.provenance["sequences_sha256"]
    for name in ("validation", "test"):
        for a, b in zip(plain.benchmark.streams[name], stream.benchmark.streams[name], strict=True):
            assert torch.equal(rows_of(a.dataset), rows_of(b.dataset))


def test_options_of_repeated_rules_are_those_of_recall_and_one_more():
    names = [field.name for field in dataclasses.fields(RepeatedRecallOptions)]
    assert set(names) - {field.name for field in dataclasses.fields(RecallOptions)} == {"repeats"}
