"""What code of the user's own raises is told in a line; what ours raises is a fault of ours, and stays one."""

from functools import partial

import pytest

from cl_ovq.errors import UserError, called, is_foreign, unknown
from cl_ovq.models import MODELS
from streams import STREAMS


def fails(text="a\nb"):
    raise RuntimeError(text)


class Fails:
    def __init__(self):
        [].pop()

    def __call__(self):
        self.nothing  # noqa: B018


class Ours:
    __module__ = "cl_ovq.models.build"


def ours():
    raise RuntimeError("a fault")


ours.__module__ = "cl_ovq.models.build"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (fails, "what: RuntimeError: a"),
        (partial(fails, "c"), "what: RuntimeError: c"),
        (partial(fails, ""), "what: RuntimeError"),
        (Fails, "what: IndexError: pop from empty list"),
        (Fails.__call__, r"what: TypeError: Fails\.__call__\(\) missing 1 required positional argument: 'self'"),
        (partial(int, "x"), r"what: ValueError: invalid literal for int\(\) with base 10: 'x'"),
    ],
)
def test_the_line(code, line):
    with pytest.raises(UserError, match=rf"^{line}( \(.*test_errors\.py, line \d+\))?$") as told:
        called("what", code)
    assert isinstance(told.value.__cause__, Exception)
    assert "test_errors.py" in str(told.value) or code.args == ("x",)


def test_a_fault_of_ours_stays_one():
    with pytest.raises(RuntimeError, match="a fault"):
        called("what", partial(ours))
    assert not is_foreign(Ours)
    assert not any(part.foreign for part in MODELS.values())
    assert not any(is_foreign(entry.build) for entry in STREAMS.values())


def test_a_line_stays_as_it_is():
    def refuses():
        raise UserError("key: no")

    with pytest.raises(UserError, match=r"^key: no$"):
        called("what", refuses)


def test_of_many_names_the_nearest_are_listed():
    names = [f"network{number}" for number in range(200)] + ["resnet18", "resnet34"]
    line = str(unknown("model", "resnet", names))
    assert line.startswith("unknown model 'resnet': did you mean 'resnet")
    assert "resnet18, resnet34" in line
    assert len(line) < 700
    listed, more = line.partition("known: ")[2].split(" and ")
    assert len(listed.split(", ")) + int(more.removesuffix(" more")) == 202
    assert str(unknown("model", "x", ["a", "b"])).endswith("known: a, b")
    assert len(str(unknown("model", "qqqqqqqq", names))) < 700
