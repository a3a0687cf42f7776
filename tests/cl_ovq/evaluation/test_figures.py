"""Figures stay small and readable at any number of experiences, runs, records and keys."""

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import long_figures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from long_figures import Entries, group_of, matrix_of, slots_of
from PIL import Image

from cl_ovq.comparison.figures import all_figures
from cl_ovq.evaluation import drawing, figures, metrics
from cl_ovq.evaluation.metrics import to_lists, to_matrix
from cl_ovq.sweeps.outcome import Outcome
from cl_ovq.sweeps.records import DONE, Record
from cl_ovq.sweeps.space import read_space

PIXELS = 120 * drawing.INCHES


@pytest.mark.slow
def test_a_thousand_experiences_take_less_than_200_mb(tmp_path):
    script = Path(long_figures.__file__)
    done = subprocess.run(
        [sys.executable, script, "1000", "12", "50000", tmp_path], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["mb"] < 200
    pictures = [path for path in tmp_path.glob("*.png") if path.name != "warm-up.png"]
    assert len(pictures) == 11
    for path in pictures:
        with Image.open(path) as picture:
            assert max(picture.size) <= PIXELS
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


@pytest.mark.parametrize("experiences", [1, 2, 15, 16, 30, 200])
def test_a_matrix_has_numbers_where_they_can_be_read(experiences):
    matrix = matrix_of(experiences)
    axes = figures.matrix_figure(matrix, "a run").axes[0]
    assert len(axes.texts) == (matrix.size if experiences <= drawing.NUMBERED else 0)
    places = [round(tick) for tick in axes.get_xticks()]
    assert places[0] == 1
    assert len(places) <= drawing.TICKS
    # Every cell is where its numbers on the axes say: the picture goes from half a cell before to half a cell after.
    assert axes.images[0].get_extent() == [0.5, experiences + 0.5, experiences + 0.5, -0.5]
    assert axes.get_yticklabels()[0].get_text() == "before"


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ((), ["1", "2", "3"]),
        (["", "", ""], ["1", "2", "3"]),
        (["0, 1", "", r"$x$"], ["1\n0, 1", "2", "3\n\\$x\\$"]),
        (["cats and dogs", "", "x"], ["1: cats and dogs", "2", "3: x"]),
    ],
)
def test_columns_of_a_matrix_are_called_by_what_they_hold(labels, shown):
    axes = figures.matrix_figure(matrix_of(3), "a run", labels=labels).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == shown


def test_names_of_experiences_overlap_nothing():
    """Neither each other nor what stands below; the picture grows for them, and cells stay as large as without."""
    names = [f"{'name ' * 4}{number}" for number in range(15)]
    figure = figures.matrix_figure(matrix_of(15), "a run", labels=names)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    ends = [text.get_window_extent().y0 for text in axes.get_xticklabels()]
    assert min(ends) >= axes.xaxis.label.get_window_extent().y1
    nameless = figures.matrix_figure(matrix_of(15), "a run")
    nameless.draw_without_rendering()
    assert axes.get_window_extent().height >= 0.95 * nameless.axes[0].get_window_extent().height


def test_matrices_beside_each_other_have_names_where_all_runs_hold_the_same():
    same, other = (group_of(3, number, []) for number in range(2))
    for run in [*same.runs.values(), *other.runs.values()]:
        run.experiences = [["a"], ["b"], ["c"]]
    drawn = all_figures([same, other])["Results matrices"].axes[0]
    assert [tick.get_text() for tick in drawn.get_xticklabels()] == ["1\na", "2\nb", "3\nc"]
    other.runs[1].experiences = [["a"], ["c"], ["b"]]
    drawn = all_figures([same, other])["Results matrices"].axes[0]
    assert [tick.get_text() for tick in drawn.get_xticklabels()] == ["1", "2", "3"]


def test_a_mean_matrix_has_its_spread_over_seeds():
    matrices = [matrix_of(3, seed) for seed in range(4)]
    axes = figures.mean_matrix_figure(matrices, "a run", "accuracy").axes[0]
    found = [text.get_text().split("\n\u00b1") for text in axes.texts]
    of_cells = [[matrix[i, j] for matrix in matrices] for i in range(4) for j in range(3)]
    assert found == [[f"{statistics.mean(each):.2f}", f"{statistics.stdev(each):.2f}"] for each in of_cells]
    alone = figures.mean_matrix_figure(matrices[:1], "a run", "accuracy").axes[0]
    assert [text.get_text() for text in alone.texts] == [f"{value:.2f}" for value in matrices[0].flat]


@pytest.mark.parametrize(("quantity", "sign"), [("accuracy", 1), ("bits_per_byte", -1)])
def test_the_average_along_the_stream_is_that_of_the_experiences_so_far(quantity, sign):
    run = group_of(4, 0, []).runs[0]
    run.quantity, run.matrix = quantity, [*run.matrix[:2], [None] * 4, *run.matrix[3:]]  # a row was not asked for
    axes = figures.seen_figure(run.seen_average, "a run", quantity).axes[0]
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [1, 3, 4]
    expected = [sign * statistics.mean(run.matrix[i][:i]) for i in (1, 3, 4)]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert axes.get_ylabel() == f"{quantity.replace('_', ' ')} on those experiences"


@given(first=st.integers(0, 1), last=st.integers(1, 10**7), most=st.integers(8, 30))
def test_ticks_are_few_and_round(first, last, most):
    found = drawing.marked(first, last, most)
    assert found[0] == first
    assert found == sorted(set(found))
    assert found[-1] <= last
    assert len(found) <= most
    if last - first >= most:
        assert len(found) >= most / 8
        (step,) = {later - earlier for earlier, later in itertools.pairwise(found[1:])} or {found[-1]}
        assert str(step).rstrip("0") in {"1", "2", "5"}


def test_a_raster_is_means_of_blocks():
    matrix = matrix_of(1200)
    matrix[:600] = np.nan
    small = drawing.raster(matrix)
    assert small.shape == (drawing.CELLS, drawing.CELLS)
    assert np.isnan(small[:249]).all()
    assert np.nanmean(small) == pytest.approx(np.nanmean(matrix), rel=1e-2)
    assert small[-1, -1] == pytest.approx(matrix[1198:, 1197:].mean())
    assert drawing.raster(matrix_of(100)).shape == (101, 100)


def test_a_thinned_curve_keeps_ends_peaks_and_gaps():
    y = np.random.default_rng(0).normal(size=100_000)
    y[12_345], y[54_321], y[70_000:80_000] = 50, -50, np.nan
    x, kept = drawing.thinned(np.arange(len(y)), y)
    assert len(x) <= drawing.VERTICES
    assert (x[0], x[-1]) == (0, len(y) - 1)
    assert {12_345, 54_321} <= set(x)
    np.testing.assert_array_equal(kept, y[x.astype(int)])
    assert np.isnan(kept[(x > 71_000) & (x < 79_000)]).all()
    short = np.array([3.0, 1.0])
    np.testing.assert_array_equal(drawing.thinned([0, 1], short)[1], short)


def test_owners_of_a_long_stream_are_bands_of_several():
    slots = slots_of(200)
    figure = figures.ownership_figure(slots, "a run")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (len(names), names[0], names[-1]) == (10, "experiences 1 to 20", "experiences 181 to 200")
    heights = [band.get_paths()[0].vertices[:, 1].max() for band in figure.axes[0].collections]
    assert heights[-1] == pytest.approx(sum(slots[-1].owners))  # nothing is lost


def test_entries_of_a_long_stream_have_a_scale_of_colours():
    assert len(figures.entries_figure(Entries(5, 300), "a run").axes) == 1
    figure = figures.entries_figure(Entries(200, 50_000), "a run")
    assert len(figure.axes) == 2
    assert len(figure.axes[0].collections[0].get_offsets()) <= figures.ENTRIES


def test_hundreds_of_groups_have_figures_of_bounded_size():
    groups = [group_of(3, number, [{"step": 1, "size": 2.0}]) for number in range(100)]
    for figure in all_figures(groups).values():
        assert max(figure.get_size_inches()) <= drawing.INCHES
        assert len(figure.axes) <= 13
        for legend in figure.legends:
            assert legend.get_texts()[-1].get_text() == "... and 89 more"


def test_sweeps_of_many_keys_and_trials_have_figures_of_bounded_size():
    keys = [f"key_{number}" for number in range(50)]
    space = read_space({key: {"choice": list(range(30))} for key in keys})
    sweep = SimpleNamespace(
        space=space, primary="accuracy", objectives={"accuracy": "max", "memory_bytes": "min"}, title="many"
    )
    records = [
        Record(n, dict.fromkeys(keys, n % 30), status=DONE, values={"accuracy": n / 2000, "memory_bytes": n})
        for n in range(2000)
    ]
    outcome = Outcome(sweep, Path(), records, importances=dict.fromkeys(reversed(keys), 1 / 50))
    drawn = outcome.figures()
    assert set(drawn) == {"parameters.png", "importance.png", "pareto.png"}
    for figure in drawn.values():
        assert max(figure.get_size_inches()) <= drawing.INCHES
    panels = drawn["parameters.png"].axes
    assert [axes.get_xlabel() for axes in panels] == keys[: -len(panels) - 1 : -1]  # the most important ones
    assert all(len(axes.get_xticks()) <= 8 for axes in panels)
    assert len(drawn["pareto.png"].axes[0].texts) <= drawing.LISTED


def test_metrics_of_a_long_stream_are_the_definitions():
    matrix = matrix_of(300)
    seen = [sum(matrix[i, :i]) / i for i in range(1, 301)]
    np.testing.assert_allclose(metrics.seen_average(matrix), seen)
    drops = [max(matrix[i, j] for i in range(j + 1, 300)) - matrix[300, j] for j in range(299)]
    assert metrics.forgetting(matrix) == pytest.approx(sum(drops) / 299)


def test_matrices_go_into_lists_and_back():
    matrix = matrix_of(100)
    matrix[3] = np.nan
    lists = to_lists(matrix)
    assert lists[3] == [None] * 100
    assert type(lists[4][0]) is float
    np.testing.assert_array_equal(to_matrix(lists), matrix)
