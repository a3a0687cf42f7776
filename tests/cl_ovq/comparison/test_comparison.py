"""Comparisons, against scipy's tests, against Holm's method by brute force, and on real runs."""

import io
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from cl_ovq.comparison import Group, compare, load_group, load_groups
from cl_ovq.comparison.cautions import cautions
from cl_ovq.comparison.differences import holm
from cl_ovq.comparison.figures import all_figures
from cl_ovq.comparison.pages import to_json, to_table, write_page
from cl_ovq.errors import UserError
from cl_ovq.runs.result import Result
from cl_ovq.runs.seeds import run_seeds


def group(name, accuracies):
    """A group of runs of two experiences with these average accuracies by seed."""
    runs = {}
    for seed, value in accuracies.items():
        runs[seed] = Result(
            run_id=None,
            run_name=f"{name} seed {seed}",
            matrix=[[0.0, 0.0], [value, 0.0], [value, value]],
            matrices={},
            metrics={"accuracy": value, "forgetting": None},
            dictionary={"scope": "none", "size": 0.0, "effective_size": 0.0, "bytes": 0, "history": []},
            config={
                "seed": seed,
                "stream": {"name": "x"},
                "evaluation": {"split": "test"},
                "strategy": {"name": name},
            },
            provenance={"seed": seed, "device": "x", "train_steps": 1, "wall_seconds": 1.0}
            | {"peak_memory_bytes": 1, "dictionary_bytes": 0, "replay_bytes": 0},
            output_dir="",
        )
    return Group(name, runs)


values = st.lists(st.floats(0, 1), min_size=3, max_size=6, unique=True)


@settings(max_examples=50, deadline=None)
@given(a=values, b=values)
def test_matching_seeds_are_paired_as_scipy_pairs_them(a, b):
    common = min(len(a), len(b))
    compared = compare([group("a", dict(enumerate(a))), group("b", dict(enumerate(b)))])
    found = compared.of("accuracy", 1)
    expected = stats.ttest_rel(b[:common], a[:common])
    assert (found.paired, found.seeds) == (True, common)
    assert found.difference == pytest.approx(np.mean(b[:common]) - np.mean(a[:common]), abs=1e-12)
    if np.std(np.subtract(b[:common], a[:common])) > 1e-9:
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
        low, high = expected.confidence_interval(0.95)
        assert found.interval == pytest.approx((high - low) / 2, rel=1e-6)
    assert found.corrected == found.p  # one test


@settings(max_examples=50, deadline=None)
@given(a=values, b=values)
def test_unlike_seeds_are_compared_as_scipy_compares_them(a, b):
    compared = compare([group("a", dict(enumerate(a))), group("b", {100 + i: v for i, v in enumerate(b)})])
    found = compared.of("accuracy", 1)
    assert not found.paired
    assert found.p == pytest.approx(stats.ttest_ind(b, a, equal_var=False).pvalue, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    """A hypothesis's corrected p-value is the largest Bonferroni p-value of all intersections that it is part of."""
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    expected = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(len(p))]
    assert holm(p) == pytest.approx(expected)


def test_one_seed_each_is_shown_and_not_tested():
    found = compare([group("a", {0: 0.5}), group("b", {0: 0.75})]).of("accuracy", 1)
    assert (found.difference, found.p, found.verdict) == (0.25, None, "not tested")


def test_intransigence_is_against_the_run_that_sees_all_data():
    naive, other = group("naive", {0: 0.4, 1: 0.5}), group("replay", {0: 0.6, 1: 0.7})
    joint = group("joint", {0: 0.9, 1: 0.8})
    compared = compare([naive, other, joint])
    assert compared.means["intransigence"] == [pytest.approx(0.4), pytest.approx(0.2), None]
    assert compared.of("intransigence", 1).difference == pytest.approx(-0.2)
    assert "intransigence" not in compare([naive, other]).means


def test_less_of_a_loss_is_better():
    groups = [group("a", {0: 1.0, 1: 1.2, 2: 1.1}), group("b", {0: 0.5, 1: 0.7, 2: 0.61})]
    for run in (run for each in groups for run in each.runs.values()):
        run.quantity = "bits_per_byte"
        run.metrics = {"bits_per_byte": run.metrics["accuracy"], "forgetting": None}
        run.matrix = [[None if value is None else -value for value in row] for row in run.matrix]
    compared = compare(groups)
    found = compared.of("bits_per_byte", 1)
    assert found.difference < 0
    assert found.verdict == "better"
    assert "accuracy" not in compared.means
    figures = all_figures(compared.groups)
    assert "Bits per byte over experiences" in figures
    (axes,) = figures["Bits per byte over experiences"].axes
    thick = [line for line in axes.lines if line.get_label() == "b"]
    assert thick[0].get_ydata() == pytest.approx([np.mean([0.5, 0.7, 0.61])] * 2)
    assert figures["Results matrices"].axes[-1].get_ylabel() == "minus bits per byte"


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Real runs with replay and without, of four seeds each: of three, how a processor rounds decided the test."""
    folder = tmp_path_factory.mktemp("compared")
    for name in ("replay", "naive"):
        settings = ("seeds=4", "strategy.epochs=4", f"strategy.name={name}", f"output_dir={folder / name}")
        run_seeds(tiny(*settings), Console(file=io.StringIO()))
    return folder


def test_a_run_equals_itself_and_naive_is_worse_than_replay(runs):
    replay = str(runs / "replay")
    compared = compare(load_groups([replay, replay, str(runs / "naive")]))
    itself, naive = compared.of("accuracy", 1), compared.of("accuracy", 2)
    assert (itself.difference, itself.verdict) == (0, "no difference shown")
    assert naive.difference < -0.1
    assert naive.verdict == "worse"
    assert compared.of("forgetting", 2).verdict == "worse"
    assert compared.of("wall_seconds", 2).verdict == "not tested"


def test_the_best_mean_is_marked_only_where_the_tests_bear_it_out(runs):
    replay, naive = str(runs / "replay"), str(runs / "naive")
    both, turned, alike = (compare(load_groups(each)) for each in ([replay, naive], [naive, replay], [replay] * 2))
    assert (both.best("accuracy"), turned.best("accuracy"), alike.best("accuracy")) == (0, 1, None)
    assert turned.best("forgetting") == 1  # less of it
    assert both.best("wall_seconds") is both.best("average_incremental_accuracy") is None  # not tested
    assert compare([*both.groups, *alike.groups]).best("accuracy") is None  # one is no worse than the first
    (row,) = [row for row in to_table(turned).rows if row[0][0].text == "average accuracy"]
    assert [cell[0].best for cell in row[1:]] == [False, True]


def test_table_data_and_page_say_the_same(runs, tmp_path):
    compared = compare(load_groups([str(runs / "replay"), str(runs / "naive")]))
    console = Console(file=io.StringIO(), width=160)
    console.print(to_table(compared))
    shown = console.file.getvalue()
    data = json.loads(to_json(compared))
    difference = next(d for d in data["differences"] if d["metric"] == "accuracy")
    for text in (shown, (page := _page(compared, tmp_path))):
        assert f"{difference['difference']:.3f}" in text
        assert f"{data['means']['accuracy'][0]:.3f}" in text
        assert "worse" in text
    assert not re.search(r"(src|href)=['\"](?!data:)", page)  # nothing from elsewhere
    assert page.count("data:image/png;base64,") == len(all_figures(compared.groups)) == 4
    assert "strategy.name: replay | naive" in page


def _page(compared, folder):
    write_page(compared, folder / "page.html")
    return (folder / "page.html").read_text()


def test_what_can_be_named(runs):
    whole = load_group(str(runs / "replay"))
    assert list(whole.runs) == [0, 1, 2, 3]
    saved = runs / "replay" / "seeds.json"
    assert load_group(str(saved)).runs.keys() == whole.runs.keys()
    (runs / "replay.json").write_text(saved.read_text())  # a result that was saved under another name
    assert load_group(str(runs / "replay.json")).runs.keys() == whole.runs.keys()
    assert list(load_group(str(runs / "replay" / "seed_1")).runs) == [1]


def test_mistakes_are_said(runs, tmp_path):
    with pytest.raises(UserError, match=r"with different configurations \(they differ in .*strategy\.name\)"):
        load_group(str(runs))
    with pytest.raises(UserError, match="contains no results"):
        load_group(str(tmp_path))
    other = group("other", {0: 0.5})
    (tmp_path / "results.json").write_text(next(iter(other.runs.values())).to_json())
    with pytest.raises(UserError, match="on different streams"):
        load_groups([str(runs / "replay"), str(tmp_path)])


def test_single_runs_of_different_seeds_say_little(run, call):
    one, other = run().output_dir, run("seed=1").output_dir
    code, _, error = call("compare", one, other)
    assert (code, len(error.splitlines())) == (0, 1)
    assert error.startswith("compare: single runs of different seeds (0, 1): their differences say little")
    assert call("compare", one, one)[2] == ""
    (line,) = json.loads(call("compare", one, other, "--json")[1])["cautions"]
    assert error == f"compare: {line}\n"
    several = group("c", {0: 0.5, 1: 0.6})
    assert cautions([group("a", {0: 0.5}), group("b", {1: 0.5})])
    assert cautions([group("a", {0: 0.5}), group("b", {0: 0.5})]) == cautions([several, group("b", {1: 0.5})]) == []


@pytest.mark.parametrize(
    ("seeds", "data", "stream", "told"),
    [
        ((0, 0), {}, {}, False),
        ((0, 0), {"files": {"x.csv": {"sha256": "b"}}}, {}, True),
        ((0, 1), {"files": {"x.csv": {"sha256": "b"}}}, {}, True),
        ((0, 0), {"files": {"elsewhere/x.csv": {"sha256": "a"}}}, {}, False),
        ((0, 0), {"sequences_sha256": "t"}, {}, True),
        ((0, 1), {"sequences_sha256": "t"}, {}, False),  # which are drawn from the seed
        ((0, 0), {"files": {"x.csv": {"sha256": "b"}}}, {"name": "y"}, False),  # another key says so
        ((0, 0), {"files": {}, "sequences_sha256": 5}, {}, True),
    ],
)
def test_one_stream_in_the_configuration_and_other_data_are_told(seeds, data, stream, told):
    first, second = (group(name, {seed: 0.5, 9: 0.5}) for name, seed in zip("ab", seeds, strict=True))
    del first.runs[9]
    for one in [*first.runs.values(), *second.runs.values()]:
        one.provenance["data"] = {"files": {"x.csv": {"sha256": "a"}}, "sequences_sha256": f"s{one.config['seed']}"}
    changed = second.runs[seeds[1]]
    changed.provenance["data"] = changed.provenance["data"] | data
    changed.config["stream"] = changed.config["stream"] | stream
    lines = cautions([first, second])
    assert len(lines) == told
    assert not told or "different data (checksums differ)" in lines[0]
    del changed.provenance["data"]  # as in older results
    assert cautions([first, second]) == []


def test_figures_of_a_comparison_are_files(run, call, tmp_path):
    folder = run().output_dir
    code, out, error = call("compare", folder, folder, "--figures", "drawn", "--format", "pdf")
    assert (code, error) == (0, "")
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert {"results_matrices.pdf", "accuracy_over_experiences.pdf"} <= names
    assert all(f"written: drawn/{name}" in out for name in names)
    assert {path.read_bytes()[:4] for path in (tmp_path / "drawn").iterdir()} == {b"%PDF"}
    code, _, error = call("compare", folder, folder, "--format", "svg")
    assert (code, error) == (
        2,
        "error: --format requires --figures FOLDER: figures in an HTML page are embedded\n",
    )
