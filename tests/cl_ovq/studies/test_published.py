"""Published numbers: what is compared with what, on both sides, with real runs."""

import io

import numpy as np
import pytest
from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.evaluation.aggregates import Aggregate
from cl_ovq.paths import RESULTS
from cl_ovq.runs.result import Result
from cl_ovq.strategies import STRATEGIES
from cl_ovq.studies.published import (
    Reproduction,
    list_published,
    load_published,
    reproduce,
    summary,
    to_table,
)

ROW = """
title: Digits
source: somebody
target: {{accuracy: {value}, within: 0.01}}
experiment: {tiny}
set: {{strategy.name: {strategy}}}
"""


@pytest.fixture(scope="module")
def row(tiny_path, tmp_path_factory):
    """`row(name, value=..., strategy=...)`: the file of a published number of the tiny experiment."""
    folder = tmp_path_factory.mktemp("published")

    def row(name, value=0.5, strategy="naive"):
        path = folder / f"{name}.yaml"
        path.write_text(ROW.format(value=value, strategy=strategy, tiny=tiny_path))
        return path

    return row


def test_both_sides_fail_and_what_is_near_does_not(row, tmp_path):
    first = reproduce(load_published([row("one")]), 2, tmp_path, Console(file=io.StringIO()))[0]
    runs = [Result.read(path) for path in sorted((tmp_path / "one").rglob(RESULTS))]
    assert [run.config["seed"] for run in runs] == [0, 1]
    assert {run.config["evaluation"]["split"] for run in runs} == {"test"}
    assert first.measured.mean == pytest.approx(np.mean([run.metrics["accuracy"] for run in runs]))
    measured = first.measured.mean
    names = [row(*pair) for pair in (("one", measured + 0.009), ("two", measured - 0.02), ("three", measured + 0.02))]
    for name, verdict in zip(names, ("reproduced", "too high", "too low"), strict=True):
        (target,) = load_published([name])
        assert Reproduction(target, first.measured).verdict == verdict
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(RESULTS)}
    again = reproduce(load_published([names[0]]), 2, tmp_path, Console(file=io.StringIO()))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob(RESULTS)} == before  # nothing is run again
    assert again[0].verdict == "reproduced"
    text = to_table(again, sources=True).to_markdown()
    assert f"| one | {measured + 0.009:.4f} | 0.010 | {measured:.4f} +- " in text
    assert "| 2 | reproduced | somebody |" in text
    assert len(to_table(again).rows) == 1


def test_strategies_and_how_many_of_their_numbers_are_reproduced(row):
    pairs = [("a", "naive"), ("b", "naive"), ("c", "replay"), ("d", "replay"), ("e", "replay")]
    targets = load_published([row(name, strategy=strategy) for name, strategy in pairs])
    near, far = (Aggregate(value, None, None, 1) for value in (0.5, 0.9))
    measured = [near, far, near, None, None]
    found = [Reproduction(target, ours) for target, ours in zip(targets, measured, strict=True)]
    found[4] = Reproduction(targets[4], None, missing="no data")
    lines = summary(found).to_markdown().splitlines()
    assert "| naive | 1 | 1 | 0 |" in lines
    assert "| replay | 1 | 1 | 1 |" in lines  # a run that failed is one that missed
    assert "| ewc | 0 | 0 | 0 |" in lines
    assert len(lines) == len(STRATEGIES) + 2


def test_data_that_is_not_there_is_said_and_the_rest_is_measured(row, tmp_path):
    path = row("elsewhere")
    elsewhere = f"set: {{stream.name: split_mnist, stream.data_dir: {tmp_path}, "
    path.write_text(path.read_text().replace("set: {", elsewhere))
    found = reproduce(load_published([path, row("here")]), 1, tmp_path / "runs", Console(file=io.StringIO()))
    assert found[0].verdict == "not run"
    assert "MNIST was not found" in found[0].missing
    assert found[1].measured == Aggregate(found[1].measured.mean, None, None, 1)


def test_an_encoder_that_is_not_there_is_said(row, tmp_path):
    path, both = row("weights"), row("both")
    encoder = f"encoder.name: torchvision, encoder.weights: {tmp_path / 'none.pth'}, model.name: pixels"
    part = "{{stream.name: {}, {}}}"
    text = "title: t\nsource: s\ntarget: {accuracy: 0.5, within: 0.01}\nexperiment: encoder_digits\nset: "
    path.write_text(text + part.format("split_digits", encoder))
    both.write_text(text + part.format(f"split_mnist, stream.data_dir: {tmp_path}", encoder))
    found = reproduce(load_published([path, both]), 1, tmp_path / "runs", Console(file=io.StringIO()))
    assert [one.verdict for one in found] == ["not run", "not run"]
    assert found[0].missing.startswith(f"encoder.weights: there is no file {tmp_path / 'none.pth'}")
    assert "MNIST was not found" in found[1].missing
    assert "; encoder.weights: there is no file" in found[1].missing
    assert "\n" not in found[1].missing


def test_a_run_that_fails_is_no_missing_data(row, tmp_path):
    broken = row("broken")
    broken.write_text(broken.read_text().replace("set: {", "set: {model.patch_size: 3, "))
    said = io.StringIO()
    found = reproduce(load_published([broken, row("sound")]), 1, tmp_path, Console(file=said))
    assert [found[0].verdict, found[0].missing] == ["failed", None]
    assert found[1].measured is not None
    assert "model.patch_size: 3 does not divide" in said.getvalue()


def test_every_published_number_of_the_project_is_right_in_form():
    targets = load_published()
    assert {target.name for target in targets} == set(list_published())
    assert {"crosscheck_fashion_naive", "crosscheck_fashion_joint", "mnist_lwf", "permuted_mnist_si"} <= set(
        list_published()
    )
    for target in targets:
        assert 0 < target.value < 1
        assert 0.005 <= target.within <= 0.025


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source:", "sorce:", "unknown key of a published number 'sorce': did you mean 'source'"),
        ("title: Digits\n", "", "title is missing"),
        ("accuracy: 0.5", "acuracy: 0.5", "metric of a published number 'acuracy': did you mean 'accuracy'"),
        (", within: 0.01", "", "target: name one metric, and within"),
        ("0.01", "near", "within: 'near' is not a number"),
        ("strategy.name: naive", "strategy.name: nave", "unknown strategy 'nave'"),
    ],
)
def test_a_mistake_is_one_line(row, old, new, message):
    path = row("mistaken")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message) as found:
        load_published([path])
    assert "\n" not in str(found.value)
