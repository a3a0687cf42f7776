"""Rooms of the house in their order: each one imports from those above it in this list, and never from one below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "kernels",
    "cl_ovq.uris",
    "cl_ovq.errors",
    "cl_ovq.paths",
    "cl_ovq.options",
    "cl_ovq.registry",
    "cl_ovq.metric_names",
    "cl_ovq.imports",
    "cl_ovq.seeding",
    "streams",
    "cl_ovq.encoders",
    "cl_ovq.mixers",
    "cl_ovq.models",
    "cl_ovq.in_context",
    "cl_ovq.training",
    "cl_ovq.evaluation",
    "cl_ovq.strategies",
    "cl_ovq.config",
    "cl_ovq.report",
    "cl_ovq.tracking",
    "cl_ovq.runs",
    "cl_ovq.studies",
    "cl_ovq.sweeps",
    "cl_ovq.comparison",
    "cl_ovq.audits",
    "cl_ovq.benchmarks",
    "cl_ovq.api",
    "cl_ovq.avalanche",
    "cl_ovq.cli",
    "cl_ovq.__main__",
)
# Models that were registered with MLflow name this module, which therefore stays where it is.
EXCEPTIONS = {("cl_ovq/models/saving.py", "cl_ovq.config"), ("cl_ovq/models/saving.py", "cl_ovq.in_context")}
FILES = sorted(
    path.relative_to(ROOT) for top in ("kernels", "streams", "cl_ovq") for path in (ROOT / top).rglob("*.py")
)


def room_of(module):
    """The entry of `ORDER` that a module belongs to; None of those outside, and of the package's own entrance."""
    return next((room for room in ORDER if module == room or module.startswith(f"{room}.")), None)


def imported(tree):
    """The modules that a file imports, wherever in it, but for what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from cl_ovq import studies` names a room in its second half.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_imports_only_from_those_before_it(path):
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    own = room_of(module)
    if own is None:  # the entrance and its look at other packages
        assert path.parent == Path("cl_ovq")
        return
    used = {room for name in imported(ast.parse((ROOT / path).read_text())) if (room := room_of(name)) is not None}
    later = {room for room in used if ORDER.index(room) > ORDER.index(own) and (str(path), room) not in EXCEPTIONS}
    assert not later


def test_no_room_is_forgotten():
    found = {"cl_ovq." + path.parts[1].removesuffix(".py") for path in FILES if path.parts[0] == "cl_ovq"}
    assert found - set(ORDER) == {"cl_ovq.__init__", "cl_ovq.packages"}
