"""Pages whose code is run as it stands, in turn, as a reader would."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from cl_ovq.mixers import dictionaries

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


@pytest.mark.parametrize(("page", "count"), [("python.md", 11), ("avalanche.md", 2)])
def test_every_block_of_a_page_runs(page, count, names):
    found = blocks(page)
    assert len(found) == count == (DOCS / page).read_text().count("```python")
    for number, block in enumerate(found, start=1):
        run(block, names, f"{page}, block {number}")


def test_the_notebook_runs_and_shows_figures_and_tables(names):
    shown = [run(cell, names, f"cell {number}") for number, cell in enumerate(cells(), start=1)]
    pictures = [value._repr_mimebundle_() for value in shown if hasattr(value, "_repr_mimebundle_")]
    assert len(pictures) == 2
    assert all(picture["image/png"].startswith(b"\x89PNG") for picture in pictures)
    assert sum(hasattr(value, "_repr_html_") for value in shown) == 2


def prepared(text, names):
    """Run what a page takes for granted."""
    exec(text, names)


PHOTOS = """
import numpy as np
from pathlib import Path
from PIL import Image

for name in ("cat", "dog"):
    Path("photos", name).mkdir(parents=True)
    for number in range(12):
        Image.fromarray(np.full((9, 8, 3), 5 * number, np.uint8)).save(f"photos/{name}/{number}.png")
rows = [f"{number % 7},{number % 3},{'ab'[number % 2]},{'xy'[number // 2 % 2]}" for number in range(80)]
Path("vectors.csv").write_text("\\n".join(["first,second,label,domain", *rows]))
"""
PERSISTENT = """
import torch
from torch import nn
from cl_ovq.mixers import OVQAttention
from kernels import DictionaryOptions

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        options = DictionaryOptions(capacity=8, chunk_size=4)
        self.layer = OVQAttention(width=8, heads=2, options=options, persistent=True, sums=True)

    def forward(self, x):
        return self.layer(x)[0]

model, other_worker = Model(), Model()
x, y = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
criterion, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1)
"""


def test_the_blocks_on_data_of_your_own(names, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepared(PHOTOS, names)
    for block in blocks("data.md")[1:]:  # the first reads a package of Debian's
        run(block.replace("{", '{"tracking.enabled": False, '), names, "data.md")  # a store takes seconds
    assert names["result"].metrics["accuracy"] > 0.2
    assert names["stream"].n_classes == 2


def test_the_layer_of_the_readme_goes_on_where_it_stopped(names):
    (block,) = blocks("../README.md")
    run(block, names, "README.md")
    assert names["y"].shape == (2, 1, 256)
    dictionary = names["state"].dictionary
    assert int(dictionary.tokens[0] + dictionary.pending_mask[0].sum()) == 1001


def test_a_training_loop_and_whole_dictionaries(names):
    prepared(PERSISTENT, names)
    first, second = blocks("dictionaries.md")
    run(first, names, "dictionaries.md")
    (dictionary,) = dictionaries(names["model"]).values()
    assert int(dictionary.writes) == 1
    run(second, names, "dictionaries.md")
    assert dictionary.state.capacity == 128
    assert not dictionary.state.counts.any()  # it had one task, which was forgotten


def test_the_operator(names):
    prepared("import torch\nfrom kernels import DictionaryOptions, ovq_attention", names)
    prepared("q = k = v = torch.randn(1, 40, 2, 8)\nbeta = 3.0", names)
    (block,) = blocks("operator.md")
    run(block, names, "operator.md")
    assert names["o"].shape == (1, 40, 2, 8)
