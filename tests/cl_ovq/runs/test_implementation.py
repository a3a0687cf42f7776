"""Kernels and native code that cannot serve a run are told before anything is loaded."""

import shutil

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
    line = rf"^model\.implementation: triton does not support this run: {reason}.*: use auto$"
    with pytest.raises(UserError, match=line):
        check_config(tiny("model.implementation=triton", *overrides))
    check_config(tiny("model.implementation=chunked", *overrides))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("dictionary.growth=recycle", "growth 'recycle' is not served"),
        ("dictionary.value_weight=1", "value_weight=1.0 is not served"),
        ("dictionary.slot_init=random", "seeds 'random' are not served"),
    ],
)
def test_options_that_native_code_does_not_serve(tiny, override, reason):
    with pytest.raises(
        UserError, match=rf"^model\.implementation: native does not support this run: {reason}.*: use auto$"
    ):
        check_config(tiny("model.implementation=native", override))
    check_config(tiny("model.implementation=native"))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CXX", "/bin/false", "cannot be compiled by /bin/false"),
        ("CXX", "/bin/there_is_none", "needs Linux and a C++ compiler"),
        ("XDG_CACHE_HOME", "/dev/null", "cannot be compiled into the cache: .*/dev/null"),
        ("CL_OVQ_NATIVE", "0", "needs Linux and a C++ compiler"),
    ],
)
def test_native_code_that_cannot_be_compiled(tiny, monkeypatch, tmp_path, name, value, said):
    monkeypatch.setattr("kernels.native.library._loaded", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^model\.implementation: implementation 'native' {said.replace('++', '..')}"):
        check_config(tiny("model.implementation=native"))


def test_learner_in_context(tiny, interpreted):
    asked = ("strategy.name=in_context", "dictionary.scope=sequence", "learner.implementation=triton")
    check_config(tiny(*asked))
    with pytest.raises(
        UserError, match=r"^learner\.implementation: triton does not support this run: growth 'recycle'"
    ):
        check_config(tiny(*asked, "dictionary.growth=recycle"))


def test_processor_without_an_interpreter(tiny, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(
        UserError,
        match=r"^model\.implementation: triton does not .* tensors on a GPU, these are on cpu",
    ):
        check_config(tiny("model.implementation=triton"))


def test_layers_without_a_dictionary_have_no_such_option(tiny):
    with pytest.raises(UserError, match=r"model\.implementation"):
        tiny("model.implementation=triton", "model.mixer=softmax")
