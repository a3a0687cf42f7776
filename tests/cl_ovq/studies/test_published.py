"""Published numbers: what is compared with what, on both sides, with real runs."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cl_ovq.cli.app import app
from cl_ovq.errors import UserError
from cl_ovq.evaluation.aggregates import Aggregate
from cl_ovq.paths import RESULTS
from cl_ovq.runs.result import Result
from cl_ovq.strategies import STRATEGIES
from cl_ovq.studies.published import (
    NO_SOURCE,
    Reproduction,
    list_published,
    load_published,
    reproduce,
    summary,
    to_table,
)

PAGE = (Path(__file__).parents[3] / "docs" / "published.md").read_text(encoding="utf-8")
ROW = """
title: Digits
source: somebody
target: {{accuracy: {value}, within: 0.01}}
experiment: {tiny}
set: {{strategy.name: {strategy}}}
"""


@pytest.fixture(scope="module")
def row(tiny_path, tmp_path_factory):
    """`row(name, value=..., strategy=..., more=...)`: the file of a published number of the tiny experiment."""
    folder = tmp_path_factory.mktemp("published")

    def row(name, value=0.5, strategy="naive", more=""):
        path = folder / f"{name}.yaml"
        path.write_text(ROW.format(value=value, strategy=strategy, tiny=tiny_path) + more)
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


def test_another_protocol_is_neither_reproduced_nor_missed(row):
    links = 'links: {number: "https://a/table", settings: ["https://b/one", "https://b/two"]}'
    (target,) = load_published([row("other", 0.5, more=f"differs: fewer epochs\n{links}")])
    assert target.differs == "fewer epochs"
    assert (target.number_at, target.settings_at) == ("https://a/table", ("https://b/one", "https://b/two"))
    found = [Reproduction(target, Aggregate(value, None, None, 1)) for value in (0.509, 0.48, 0.52)]
    assert [one.verdict for one in found] == ["near", "far", "far"]
    assert "| naive | 0 | 0 | 3 | 0 |  |" in summary(found).to_markdown().splitlines()
    text = to_table(found, sources=True).to_markdown()
    assert "| somebody | fewer epochs | https://a/table https://b/one https://b/two |" in text
    failed = Reproduction(target, None)
    assert failed.verdict == "failed"  # whatever the protocol


@pytest.mark.parametrize(("more", "code"), [("", 1), ("differs: nothing much", 0)])
def test_a_number_that_is_missed_fails_the_command_and_another_protocol_does_not(row, tmp_path, more, code):
    path = row("missed", 0.999, more=more)
    done = CliRunner().invoke(app, ["published", str(path), "--seeds", "1", "--directory", str(tmp_path / "runs")])
    assert done.exit_code == code
    assert ("too low" if code else "far") in done.output
    assert ("missed: the protocol differs: nothing much" in done.output) == (not code)


def test_strategies_and_how_many_of_their_numbers_are_reproduced(row):
    pairs = [("a", "naive"), ("b", "naive"), ("c", "replay"), ("d", "replay"), ("e", "replay")]
    targets = load_published([row(name, strategy=strategy) for name, strategy in pairs])
    near, far = (Aggregate(value, None, None, 1) for value in (0.5, 0.9))
    measured = [near, far, near, None, None]
    found = [Reproduction(target, ours) for target, ours in zip(targets, measured, strict=True)]
    found[4] = Reproduction(targets[4], None, missing="no data")
    lines = summary(found).to_markdown().splitlines()
    assert "| naive | 1 | 1 | 0 | 0 |  |" in lines
    assert "| replay | 1 | 1 | 0 | 1 |  |" in lines  # a run that failed is one that missed
    assert f"| ewc | 0 | 0 | 0 | 0 | {NO_SOURCE} |" in lines
    assert [line.split(" ")[1] for line in lines[2:]] == list(STRATEGIES)


def test_a_strategy_of_the_users_own_stands_in_the_summary_if_it_has_a_row(row):
    with STRATEGIES.lent("mine", "fine-tuning", build=lambda options, context: context.naive()):
        assert "| mine |" not in summary([]).to_markdown()
        (target,) = load_published([row("own", strategy="mine")])
        assert "| mine | 0 | 1 | 0 | 0 |  |" in summary([Reproduction(target, None)]).to_markdown()


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


@pytest.fixture(scope="module")
def shipped():
    return load_published()


def test_every_published_number_of_the_project_is_right_in_form(shipped):
    assert {target.name for target in shipped} == set(list_published())
    for target in shipped:
        assert 0 < target.value < 1
        assert 0.005 <= target.within <= 0.025


def test_every_published_number_says_where_it_and_its_settings_stand(shipped):
    for target in shipped:
        if target.name.startswith("crosscheck_"):
            assert (target.number_at, target.settings_at) == (None, ())
            continue
        assert target.number_at, target.name
        assert target.settings_at, target.name
        for address in target.settings_at:  # a branch moves on
            assert re.match(r"https://github\.com/[\w-]+/[\w.-]+/blob/[0-9a-f]{40}/\S+$", address), address


def test_every_strategy_has_a_number_or_stands_among_those_without(shipped):
    """The page names each row with strategy and number, and each strategy that has none."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.partition("## Without a row")[0], re.MULTILINE))
    assert list(rows) == [target.name for target in shipped if not target.name.startswith("crosscheck_")]
    covered = set()
    for target in shipped:
        strategy = target.row.config({}, 0, "test").strategy.name
        covered.add(strategy)
        if target.name in rows:
            assert rows[target.name].startswith(f"`{strategy}` | {target.value:.4f} | "), target.name
            assert ("yes" if target.differs else "no") == rows[target.name].split(" | ")[-1], target.name
    without = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Without a row")[2], re.MULTILINE)
    assert without == [name for name in STRATEGIES if name not in covered]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source:", "sorce:", "unknown key of a published number 'sorce': did you mean 'source'"),
        ("title: Digits\n", "", "title is missing"),
        ("accuracy: 0.5", "acuracy: 0.5", "metric of a published number 'acuracy': did you mean 'accuracy'"),
        (", within: 0.01", "", "target: give one metric, and within"),
        ("0.01", "near", "within: 'near' is not a number"),
        ("strategy.name: naive", "strategy.name: nave", "unknown strategy 'nave'"),
        ("title:", "links: {numbr: x}\ntitle:", "link of a published number 'numbr': did you mean 'number'"),
        ("title:", "links: {number: table 2}\ntitle:", "links: 'table 2' is no address: write https://"),
        ("title:", "links: {settings: https://a}\ntitle:", "links.settings: must be a list of addresses"),
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
