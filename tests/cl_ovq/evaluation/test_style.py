"""The one style of all figures: told apart by the colour-blind, beside the data, as a file of any kind."""

import itertools

import matplotlib
import numpy as np
import pytest
from long_figures import Entries, group_of, matrix_of, records_of, slots_of
from matplotlib.colors import to_rgb

from cl_ovq.comparison.figures import all_figures
from cl_ovq.evaluation import figures
from cl_ovq.evaluation.style import PALETTE, line_style, point_style

# Linear RGB to linear RGB as those without one kind of cone see it (Machado et al. 2009, severity 1).
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, seen):
    """CIELAB of a colour as somebody sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ (np.array(seen) @ linear).clip(1e-4, 1) / TO_XYZ.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colors, seen):
    """The distance of the two colours that are most alike to somebody."""
    return min(np.linalg.norm(lab(a, seen) - lab(b, seen)) for a, b in itertools.combinations(colors, 2))


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_colour_blind_tell_lines_apart(blindness):
    assert nearest(PALETTE, BLINDNESS[blindness]) > 12
    if blindness != "tritanopia":  # who see red and green alike do not tell matplotlib's own colours apart
        assert nearest([f"C{number}" for number in range(len(PALETTE))], BLINDNESS[blindness]) < 8


def drawn():
    """Figures of every kind that has a legend, by name."""
    groups = [group_of(5, number, [{"step": 1, "size": 2.0}, {"step": 9, "size": 4.0}]) for number in range(3)]
    found = all_figures(groups)
    del found["Results matrices"]
    found["growth"] = figures.growth_figure(records_of(5, 50), 512, "a run")
    found["owners"] = figures.ownership_figure(slots_of(5), "a run")
    found["entries"] = figures.entries_figure(Entries(5, 300), "a run")
    return found


@pytest.mark.parametrize("name", drawn())
def test_legends_stand_beside_the_data(name):
    figure = drawn()[name]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    whole, box = figure.bbox, legend.get_window_extent()
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    for axes in figure.axes:
        assert not box.overlaps(axes.get_window_extent())
        assert axes.get_window_extent().width > 3.5 * figure.dpi  # the data keep their room


def test_figures_have_their_style_whatever_else_is_set_and_change_nothing():
    before = dict(matplotlib.rcParams)
    plain = all_figures([group_of(3, 0, []), group_of(3, 1, [])])["Accuracy over experiences"]
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.prop_cycle": matplotlib.cycler(color=["red"]), "axes.spines.top": True}):
        other = figures.age_figure([0.9, 0.5], "a run")
    means = [line for line in plain.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_color() for line in means] == list(PALETTE[:2])
    assert other.axes[0].lines[0].get_color() == PALETTE[0]
    assert not other.axes[0].spines["top"].get_visible()
    assert len({tuple(line_style(number).values()) for number in range(21)}) == 21
    points = [point_style(number) for number in range(21)]
    assert len({(style["color"], style["marker"]) for style in points}) == 21  # a single point has no dashes


@pytest.mark.parametrize(("kind", "begin"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_figure_is_the_same_file_each_time(tmp_path, kind, begin):
    for name in ("first", "second"):
        figures.matrix_figure(matrix_of(3), "a run").savefig(tmp_path / f"{name}.{kind}", dpi=120)
    first = (tmp_path / f"first.{kind}").read_bytes()
    assert first.startswith(begin)
    assert b"/Subtype /Type3" not in first  # which journals refuse
    assert b"CreationDate" not in first
    assert b"<dc:date>" not in first
    assert first == (tmp_path / f"second.{kind}").read_bytes()
