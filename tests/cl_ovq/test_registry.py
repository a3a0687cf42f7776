"""Registries and what can be listed of them."""

import pytest

from cl_ovq.cli.listing import KINDS
from cl_ovq.errors import UserError, nearest, unknown
from cl_ovq.registry import Part, Registry


@pytest.fixture
def registry():
    registry = Registry("fruit", Part)
    registry.enter("plum", "a stone fruit")("PLUM")
    registry.enter("apple", "a pome")("APPLE")
    return registry


def test_parts_by_name(registry):
    assert registry["plum"].build == "PLUM"
    assert list(registry) == ["plum", "apple"]
    assert len(registry) == 2
    assert "apple" in registry
    assert "pear" not in registry
    assert [part.summary for part in registry.values()] == ["a stone fruit", "a pome"]


def test_unknown_name(registry):
    with pytest.raises(UserError, match=r"^unknown fruit 'aple': did you mean 'apple'\? known: apple, plum$"):
        registry["aple"]
    with pytest.raises(UserError, match=r"^unknown fruit 'zzz': known: apple, plum$"):
        registry["zzz"]


def test_name_entered_twice(registry):
    with pytest.raises(ValueError, match="there is a fruit 'plum' already: register yours under another name"):
        registry.enter("plum", "again")("X")
    assert registry["plum"].build == "PLUM"


def test_errors_are_one_line():
    assert str(UserError("a\nb\r\nc\x0bd")) == "a b c d"
    assert str(unknown("x", "a\nb", ["c"])) == "unknown x 'a b': known: c"
    assert nearest("WIDTH", ["width"], prefix="model.") == ": did you mean 'model.width'?"
    assert nearest("q", ["width"]) == ""


def test_everything_listed_has_a_line_that_says_what_it_is():
    assert {"streams", "models", "mixers", "growth", "strategies", "optimizers", "experiments"} <= set(KINDS)
    for kind, names in KINDS.items():
        assert names(), kind
        for name, summary in names().items():
            assert len(summary) > 5, (kind, name)
            assert len(summary.splitlines()) == 1
