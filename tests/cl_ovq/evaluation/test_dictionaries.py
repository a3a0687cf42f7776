"""What is measured of dictionaries, and the figures drawn of it."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cl_ovq.evaluation.dictionaries import DictionaryRecord, DictionaryRecorder, effective_size, measure, summarize
from cl_ovq.evaluation.figures import growth_figure, matrix_figure
from cl_ovq.mixers import dictionaries
from kernels import DictionaryState


@given(counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_effective_size_is_the_perplexity(counts):
    shares = np.array([count for count in counts if count], dtype=np.float64)
    shares /= shares.sum() or 1
    expected = np.exp(-(shares * np.log(shares)).sum()) if len(shares) else 0
    assert float(effective_size(torch.tensor(counts))) == pytest.approx(expected, rel=1e-9)


def test_effective_size_by_hand():
    counts = torch.tensor([[5, 5, 5, 5], [7, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    torch.testing.assert_close(effective_size(counts), torch.tensor([4.0, 1.0, 0.0, 2.0], dtype=torch.float64))


def test_measures_average_over_rows_and_heads():
    state = DictionaryState.empty((1, 2, 4, 3, 3)).replace(
        counts=torch.tensor([[[5, 5, 0, 0], [10, 0, 0, 0]]]),
        size=torch.tensor([[2, 1]]),
        tokens=torch.tensor([10]),
    )
    assert measure(state, 7, 2) == DictionaryRecord(
        step=7, experience=2, tokens=10.0, size=1.5, effective_size=pytest.approx(1.5)
    )


@pytest.mark.parametrize("scope", ["task", "stream"])
@pytest.mark.parametrize("every", [1, 4, 1000])
def test_records_at_boundaries_and_between(session, scope, every):
    recorder = DictionaryRecorder(every)
    trained = session(f"dictionary.scope={scope}", "strategy.name=naive", metrics=(recorder,))
    trained.learn()
    steps = [-(-len(part.dataset) // 32) for part in trained.train]
    expected = [(0, 1)]
    expected += [(step, 1) for step in range(1, steps[0] + 1) if step % every == 0 or step == steps[0]]
    expected += [(steps[0], 2)]
    last = sum(steps)
    expected += [(step, 2) for step in range(steps[0] + 1, last + 1) if step % every == 0 or step == last]
    assert [(record.step, record.experience) for record in recorder.result()] == expected
    held = [len(part.dataset) * 4 for part in trained.train]
    ends = {(record.step, record.experience): record.tokens for record in recorder.result()}
    assert ends[0, 1] == 0
    assert ends[steps[0], 1] == held[0]
    assert ends[steps[0], 2] == (0 if scope == "task" else held[0])
    assert ends[last, 2] == (held[1] if scope == "task" else sum(held))
    # The figure's axis counts every token written, also where a dictionary was emptied.
    axes = growth_figure(recorder.result(), 24, "").axes[0]
    for line in axes.lines[:2]:
        tokens = line.get_xdata()
        assert (np.diff(tokens) >= 0).all()
        assert tokens[-1] == sum(held)
    assert any(set(np.atleast_1d(line.get_xdata())) == {held[0]} for line in axes.lines[2:])  # the boundary


def record(tokens, experience):
    return DictionaryRecord(step=0, experience=experience, tokens=tokens, size=1.0, effective_size=1.0)


def test_growth_axis_across_resets():
    records = [record(*pair) for pair in ((0, 1), (10, 1), (0, 2), (15, 2), (30, 2), (0, 3), (5, 3))]
    axes = growth_figure(records, 4, "").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0, 10, 10, 25, 40, 40, 45]
    boundaries = [line.get_xdata()[0] for line in axes.lines[3:]]
    assert boundaries == [10, 40]


def test_summary_of_shared_dictionaries(session):
    trained = session()
    trained.learn()
    summary = summarize(trained.model.eval(), torch.zeros(2, 1, 8, 8), 5, 2)
    states = [dictionary.state for dictionary in dictionaries(trained.model).values()]
    assert summary["scope"] == "shared"
    assert list(summary["layers"]) == ["blocks.0.mixer", "blocks.1.mixer"]
    assert summary["bytes"] == sum(t.numel() * t.element_size() for s in states for t in s.state_dict().values())
    assert summary["size"] == pytest.approx(np.mean([s.size.double().mean() for s in states]))
    assert summary["capacity_used"] == pytest.approx(summary["size"] / 24)
    for layer, state in zip(summary["layers"].values(), states, strict=True):
        assert layer["tokens"] == int(state.tokens)
        assert layer["capacity"] == 24


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_summary_of_dictionaries_of_sequences(session, scenario):
    trained = session("dictionary.scope=sequence", "dictionary.chunk_size=2", f"stream.scenario={scenario}")
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    summary = summarize(trained.model.eval(), trained.stream.samples.gather(torch.arange(6)), 5, 2)
    assert summary["scope"] == "sequence"
    assert summary["tokens"] == 4
    assert len(summary["layers"]) == 2
    assert summary["size"] == 3  # floor(4 * 24 / (4 + 24))
    state = DictionaryState.empty((1, 2, 24, 8, 8))
    assert summary["bytes"] == 2 * state.nbytes
    assert all(torch.equal(trained.model.state_dict()[name], tensor) for name, tensor in before.items())


def test_summary_without_dictionaries(session):
    summary = summarize(session("model.mixer=softmax").model.eval(), torch.zeros(2, 1, 8, 8), 5, 2)
    assert summary["scope"] == "none"
    assert (summary["size"], summary["bytes"], summary["layers"]) == (0, 0, {})


def drawn(figure):
    """Return the picture as an array, after checking that it is a PNG file with something in it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=60)
    assert file.getvalue().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("L"))
    assert pixels.std() > 5
    return pixels


@pytest.mark.parametrize("experiences", [1, 2, 10])
def test_figures_are_pictures(experiences):
    matrix = np.random.default_rng(0).random((experiences + 1, experiences))
    whole = drawn(matrix_figure(matrix, "a run"))
    matrix[1:-1] = np.nan
    partly = drawn(matrix_figure(matrix, "a run"))
    assert whole.shape == partly.shape
    texts = [text.get_text() for text in matrix_figure(matrix, "a run").axes[0].texts]
    assert len(texts) == np.isfinite(matrix).sum()
    assert f"{matrix[0, 0]:.2f}" in texts
    drawn(growth_figure([record(5.0 * i, 1 + i // 3) for i in range(3 * experiences)], 4, "a run"))
