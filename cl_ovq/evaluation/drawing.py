"""What keeps a figure small and readable whatever it shows: sizes, ticks, curves, legends, heat maps."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from cl_ovq.errors import printable
from cl_ovq.evaluation.style import GREY, SCALE, StyledFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from cl_ovq.evaluation.metrics import Matrix

warnings.filterwarnings(
    "ignore", message=r"Glyph \d+ .*missing from font"
)  # a box is drawn: names may be in any script

INCHES = 14.0  # a figure's longest side
NUMBERED = 15  # columns and rows of a heat map with a number in every cell
TICKS = 20  # of an axis
CELLS = 500  # rows and columns of an image; about its pixels
VERTICES = 2000  # of a curve; more than twice the pixels of an axis
LISTED = 12  # entries of a legend
LABEL = 40  # characters of a label
LETTER = 0.07  # inches of a legend's character
UPRIGHT = 8  # characters of what an experience holds that have room under its number


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; a side that is too long is cut to `INCHES`."""
    return StyledFigure(figsize=(min(width, INCHES), min(height, INCHES)), layout="constrained")


def marked(first: int, last: int, most: int = TICKS) -> list[int]:
    """Return the whole numbers to mark on an axis: all of them, or the first and at most half of `most` round ones."""
    if last - first < most:
        return list(range(first, last + 1))
    steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    step = next(step for step in steps if (last - first) / step <= most / 2)
    return [first, *(number for number in range(0, last + 1, step) if number >= first + step / 2)]


def mark_names(axis: Any, names: Sequence[str], most: int = 3 * TICKS) -> None:
    """Mark places 0, 1, ... of an axis with names; every few of them, where there is no room for more than `most`."""
    step = math.ceil(len(names) / most)
    places = range(0, len(names), step)
    axis.set_ticks(places, [shortened(names[place]) for place in places], fontsize="small")


def name_experiences(axes: Axes, labels: Sequence[str]) -> None:
    """Write what experiences hold under the numbers of the columns of a heat map, slanted where one is long.

    Args:
        axes: with a heat map whose columns are all marked.
        labels: of each experience, empty for its number alone; none at all leave the axis as it is.
    """
    if not any(labels):
        return
    slanted = name_height(labels) > 0
    texts = [
        str(number) if not label else f"{number}{': ' if slanted else chr(10)}{plain(label)}"
        for number, label in enumerate(labels, start=1)
    ]
    axes.set_xticks(range(1, len(labels) + 1), texts)
    if slanted:
        axes.tick_params("x", labelrotation=35)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")


def name_height(labels: Sequence[str]) -> float:
    """Return the inches that slanted names of experiences take below a heat map; 0 where they stand upright."""
    longest = max(map(len, labels), default=0)
    return 0.05 * longest if longest > UPRIGHT else 0.0


def plain(text: str) -> str:
    """Return a name so that matplotlib draws it as it is: a `$` in it begins no formula."""
    return printable(text).replace("$", r"\$")


def shortened(text: str) -> str:
    """Return a name as a label, cut in its middle where it is too long to be shown."""
    return plain(text if len(text) <= LABEL else f"{text[: LABEL // 2]}...{text[3 - LABEL // 2 :]}")


def thinned(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a curve of at most `VERTICES` points that looks like the given one: its lows and peaks are kept.

    Args:
        x: `[P]`, in order.
        y: `[P]`.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) <= VERTICES:
        return x, y
    parts = np.array_split(np.arange(len(x)), VERTICES // 4)
    low, high = np.where(np.isnan(y), np.inf, y), np.where(np.isnan(y), -np.inf, y)
    found = [(part[0], part[low[part].argmin()], part[high[part].argmax()], part[-1]) for part in parts]
    kept = np.unique(np.array(found))
    return x[kept], y[kept]


def mark_experiences(axes: Axes, places: Sequence[float], label: str) -> None:
    """Label the horizontal axis, and draw dotted lines where experiences begin, unless they are too many."""
    drawn = places if len(places) <= 2 * TICKS else ()
    for place in drawn:
        axes.axvline(place, color=GREY, linestyle=":", linewidth=0.8)
    axes.set_xlabel(f"{label} (dotted: start of an experience)" if drawn else label)


def legend(figure: Figure, *panels: Axes) -> None:
    """Draw a legend beside the data, for which the figure grows; its last entry counts those that have no room.

    Args:
        figure: that the legend is drawn in.
        panels: whose curves it names; those of one name once.
    """
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not named:
        return
    handles, labels = list(named.values()), [shortened(label) for label in named]
    if len(handles) > LISTED:
        labels = [*labels[: LISTED - 1], f"... and {len(labels) - LISTED + 1} more"]
        handles = [*handles[: LISTED - 1], Line2D([], [], linestyle="none")]
    width, height = figure.get_size_inches()
    figure.set_size_inches(min(width + LETTER * max(map(len, labels)) + 0.5, INCHES), height)
    figure.legend(handles, labels, fontsize="small", loc="outside right center")


def raster(matrix: Matrix) -> Matrix:
    """Return a matrix of at most `CELLS` rows and columns: means over blocks of a larger one, NaN where all are NaN."""
    for axis, size in enumerate(matrix.shape):
        if size > CELLS:
            starts = np.linspace(0, size, CELLS, endpoint=False).astype(int)
            counts = np.add.reduceat(~np.isnan(matrix), starts, axis=axis, dtype=float)
            sums = np.add.reduceat(np.nan_to_num(matrix), starts, axis=axis)
            matrix = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return matrix


def heat_map(axes: Axes, cells: Matrix, experiences: int, scale: tuple[float, float], ticks: int = TICKS) -> AxesImage:
    """Draw a results matrix: row i is after experience i (0: before training), column j is test experience j.

    Args:
        axes: to draw in.
        cells: `raster` of the matrix.
        experiences: T, the columns of the matrix.
        scale: ends of the scale of colours.
        ticks: of an axis, see `marked`.
    """
    low, high = scale
    extent = (0.5, experiences + 0.5, experiences + 0.5, -0.5)
    image = axes.imshow(cells, vmin=low, vmax=high, cmap=SCALE, aspect="auto", extent=extent)
    axes.set_xticks(marked(1, experiences, ticks))
    moments = marked(0, experiences, ticks)
    names = [f"after {i}" if experiences < ticks else str(i) for i in moments[1:]]
    axes.set_yticks(moments, ["before", *names])
    return image


def number_cells(axes: Axes, cells: Matrix, scale: tuple[float, float], spread: Matrix | None = None) -> None:
    """Write its number into every cell of a heat map.

    Args:
        axes: with the heat map.
        cells: of it.
        scale: ends of the scale of colours.
        spread: what stands below each number; None for nothing.
    """
    low, high = scale
    for (i, j), value in np.ndenumerate(cells):
        if not np.isnan(value):
            color = "white" if value < low + 0.6 * (high - low) else "black"
            text = f"{value:.2f}" if spread is None else f"{value:.2f}\n\u00b1{spread[i, j]:.2f}"
            axes.text(j + 1, i, text, ha="center", va="center", color=color, fontsize="small")
