"""Pages whose code is run as it stands, in turn, as a reader would."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def cells():
    tree = json.loads((DOCS / "quickstart.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in tree["cells"] if cell["cell_type"] == "code"]


def run(code, names, where):
    """Run code as a notebook does; return what its last line is, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), names)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The names of a new module: classes that pages define say which one they are of."""
    monkeypatch.chdir(tmp_path)
    module = type(sys)("page")
    monkeypatch.setitem(sys.modules, "page", module)
    return vars(module)


@pytest.mark.parametrize(("page", "count"), [("python.md", 10), ("avalanche.md", 2)])
def test_every_block_of_a_page_runs(page, count, names):
    found = blocks(page)
    assert len(found) == count == (DOCS / page).read_text().count("```python")
    for number, block in enumerate(found, start=1):
        run(block, names, f"{page}, block {number}")


def test_the_notebook_runs_and_shows_figures_and_tables(names):
    shown = [run(cell, names, f"cell {number}") for number, cell in enumerate(cells(), start=1)]
    pictures = [value._repr_png_() for value in shown if hasattr(value, "_repr_png_")]
    assert len(pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert sum(hasattr(value, "_repr_html_") for value in shown) == 2
