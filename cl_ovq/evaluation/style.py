"""How every figure looks: colours that the colour-blind tell apart, lines, type and files."""

from __future__ import annotations

from typing import Any

from cycler import cycler
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

# Okabe and Ito 2008, in an order in which neighbours differ most; without yellow, which nobody sees on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")  # of the first, second and third seven lines
MARKERS = ("o", "s", "^")  # likewise
SCALE = "viridis"  # of colours: even to the eye, for the colour-blind and in grey
GREY = "#7F7F7F"  # of what is beside the data
SHEET: Any = {
    "axes.prop_cycle": cycler(linestyle=DASHES) * cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters that a reader can search and an editor change; journals refuse type 3
    "svg.fonttype": "path",  # which looks alike whatever fonts a machine has
    "svg.hashsalt": "cl_ovq",  # a figure drawn again is the same file
}


class StyledFigure(Figure):
    """A figure with axes of `SHEET`, whatever matplotlib is set to elsewhere in the process."""

    def add_subplot(self, *args: Any, **kwargs: Any) -> Any:
        """Add axes, see `Figure.add_subplot`."""
        with rc_context(SHEET):
            return super().add_subplot(*args, **kwargs)

    def legend(self, *args: Any, **kwargs: Any) -> Any:
        """Add a legend, see `Figure.legend`."""
        with rc_context(SHEET):
            return super().legend(*args, **kwargs)

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write a file, see `Figure.savefig`, without the moment at which it was written."""
        kind = kwargs.get("format") or str(fname).rpartition(".")[2].lower()
        moment = {"pdf": "CreationDate", "svg": "Date"}.get(kind)
        with rc_context(SHEET):
            super().savefig(fname, metadata={moment: None} if moment else None, **kwargs)


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of a line, counted from 0: those that a curve has by itself in its turn."""
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number // len(PALETTE) % len(DASHES)]}


def point_style(number: int) -> dict[str, Any]:
    """Return the style of a line with points, which differ too: a line of one point shows no dashes."""
    return line_style(number) | {"marker": MARKERS[number // len(PALETTE) % len(MARKERS)]}


def task_color(task: int, tasks: int) -> Any:
    """Return the colour of an experience, the same in every figure."""
    return colormaps[SCALE](task / max(1, tasks - 1))
