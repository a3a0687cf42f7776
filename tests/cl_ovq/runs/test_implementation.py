"""Kernels that cannot serve a run are told before anything is loaded."""

import pytest

from cl_ovq.errors import UserError
from cl_ovq.runs.checking import check_config


@pytest.fixture
def interpreted(monkeypatch):
    """As where Triton's interpreter runs its kernels, so that a processor is no reason to refuse."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("dictionary.growth=recycle",), "growth 'recycle' unites slots"),
        (("dictionary.value_weight=1",), "value_weight 1.0 compares values too"),
        (("dictionary.slot_init=farthest",), "seeds 'farthest' choose one token after the other"),
        (("model.width=272", "model.heads=2"), "head sizes are 136 and 136; served: 1 to 128"),
    ],
)
def test_options_that_triton_does_not_serve(tiny, interpreted, overrides, reason):
    line = rf"^model\.implementation: triton cannot serve this run: {reason}.*: use auto$"
    with pytest.raises(UserError, match=line):
        check_config(tiny("model.implementation=triton", *overrides))
    check_config(tiny("model.implementation=chunked", *overrides))


def test_learner_in_context(tiny, interpreted):
    asked = ("strategy.name=in_context", "dictionary.scope=sequence", "learner.implementation=triton")
    check_config(tiny(*asked))
    with pytest.raises(UserError, match=r"^learner\.implementation: triton cannot serve this run: growth 'recycle'"):
        check_config(tiny(*asked, "dictionary.growth=recycle"))


def test_processor_without_an_interpreter(tiny, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match=r"^model\.implementation: triton cannot .* tensors on a GPU, these are on cpu"):
        check_config(tiny("model.implementation=triton"))


def test_layers_without_a_dictionary_have_no_such_option(tiny):
    with pytest.raises(UserError, match=r"model\.implementation"):
        tiny("model.implementation=triton", "model.mixer=softmax")
