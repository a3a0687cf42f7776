"""Tables of results: what cells hold, and how they look in the terminal, Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich import table as rich_table
from rich import text as rich_text

from cl_ovq.metric_names import better, format_number, title
from cl_ovq.report.markup import latex, markdown

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from cl_ovq.evaluation.aggregates import Aggregate

FILES = (".tex", ".csv", ".md", ".html")
SPREADS = {
    "interval": "After ±: half the 95 % confidence interval over seeds.",
    "standard deviation": "After ±: the standard deviation over seeds.",
}
STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td{vertical-align:top}td:first-child,th:first-child{text-align:left}.green{color:#060}.red{color:#a00}"
    "img{max-width:100%}pre{background:#f6f6f6;padding:1em;overflow:auto}"
)


@dataclass(frozen=True)
class Text:
    """Words in a cell.

    Attributes:
        text: anything; it is escaped wherever it goes.
        style: rich's style in the terminal, and the class in HTML.
        better: 1 or -1 where it names a metric of which more or less is better: LaTeX gives it an arrow.
    """

    text: str
    style: str = ""
    better: int = 0


@dataclass(frozen=True)
class Number:
    """A number in a cell, or a mean with its spread over seeds.

    Attributes:
        value: at full precision; None where it is missing.
        metric: says how it is written, see `format_number`.
        spec: Python's format, in place of a metric.
        spread: see `Table`; None where there is none.
        seeds: of the mean.
        signed: whether a plus is written too.
        style: in the terminal.
        best: whether it is marked as the best of what it stands beside.
    """

    value: float | None
    metric: str = ""
    spec: str = ""
    spread: float | None = None
    seeds: int | None = None
    signed: bool = False
    style: str = ""
    best: bool = False

    @property
    def parts(self) -> list[str]:
        """The number as it is written, and its spread if it has one."""
        mean = format_number(self.value, self.metric, spec=self.spec, signed=self.signed)
        return [mean] if self.spread is None else [mean, format_number(self.spread, self.metric, spec=self.spec)]

    @property
    def text(self) -> str:
        """Both in one line."""
        return " +- ".join(self.parts)


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        heading: in one line or more.
        right: whether its cells stand on the right, as numbers do.
        better: 1 or -1: of its numbers more or less is better; 0 if neither.
        lines: in CSV, what is added to the heading for each line of its cells.
        min_width: in the terminal.
    """

    heading: str = ""
    right: bool = True
    better: int = 0
    lines: tuple[str, ...] = ()
    min_width: int | None = None


Line = Text | Number


def metric_name(metric: str) -> Text:
    """Return a metric's name as the first cell of its row."""
    return Text(title(metric), better=better(metric))


def mean_number(found: Aggregate | None, metric: str = "") -> Number:
    """Return the mean over seeds of a metric with half its 95 % confidence interval."""
    if found is None:
        return Number(None)
    return Number(found.mean, metric, spread=found.interval, seeds=found.seeds)


class Table:
    """A table; rich prints it as it is.

    Args:
        columns: a heading alone is that of numbers, the first one that of names.
        title: above it in the terminal and in LaTeX.
        caption: below it.
        below: the same, of what stands below the first lines of cells.
        spread: what stands behind the means, one of `SPREADS`.
    """

    def __init__(
        self, *columns: str | Column, title: str = "", caption: str = "", below: str = "", spread: str = "interval"
    ) -> None:
        given = enumerate(columns)
        self.columns = [c if isinstance(c, Column) else Column(c, right=place > 0) for place, c in given]
        self.rows: list[list[tuple[Line, ...]]] = []
        self.title, self.caption, self.below, self.spread = title, caption, below, spread

    @property
    def note(self) -> str:
        """Everything that stands below the table."""
        return " ".join(filter(None, [self.below, self.caption]))

    def add(self, *cells: object) -> None:
        """Add a row: of each cell text, a `Number`, None where there is none, or a tuple of these under each other."""
        self.rows.append([tuple(map(_line, cell if isinstance(cell, tuple) else (cell,))) for cell in cells])

    def keep(self, places: Sequence[int]) -> Table:
        """Leave some columns, by their places from 0 on, and return the table."""
        self.columns = [self.columns[place] for place in places]
        self.rows = [[row[place] for place in places] for row in self.rows]
        return self

    def mark_best(self, groups: Sequence[object], caption: str) -> Table:
        """Mark the best number of every column of which more or less is better, and return the table.

        Means that are written alike are marked together; one that stands alone is not.

        Args:
            groups: for each row, what rows that can be compared have in common; None where it cannot be.
            caption: says what is marked.
        """
        for place, column in enumerate(self.columns):
            for group in dict.fromkeys(groups) if column.better else ():
                rows = [row for row, own in zip(self.rows, groups, strict=True) if own == group and own is not None]
                found = [cell for row in rows if isinstance(cell := row[place][0], Number) and cell.value is not None]
                if len(found) > 1:
                    best = max(found, key=lambda cell: column.better * (cell.value or 0.0))
                    for row in rows:
                        first, *rest = row[place]
                        if isinstance(first, Number) and first.parts[0] == best.parts[0]:
                            row[place] = (replace(first, best=True), *rest)
        self.caption = " ".join(filter(None, [self.caption, caption]))
        return self

    def __rich__(self) -> rich_table.Table:
        """Return it for the terminal."""
        heading = rich_text.Text(self.title, "table.title") if self.title else None
        caption = rich_text.Text(self.note, "table.caption") if self.note else None
        table = rich_table.Table(title=heading, title_justify="left", caption=caption, caption_justify="left")
        for column in self.columns:
            side: JustifyMethod = "right" if column.right else "left"
            table.add_column(rich_text.Text(column.heading), justify=side, min_width=column.min_width)
        for row in self.rows:
            shown = [[rich_text.Text(line.text, _bold(line, line.style, "bold ", "")) for line in cell] for cell in row]
            table.add_row(*(rich_text.Text("\n").join(lines) for lines in shown))
        return table

    def to_markdown(self) -> str:
        """Return it as a table of GitHub's Markdown, without its title."""
        rule = ["---:" if column.right else "---" for column in self.columns]
        body = [["<br>".join(map(_markdown_line, cell)) for cell in row] for row in self.rows]
        lines = [[markdown(column.heading) for column in self.columns], rule, *body]
        table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
        return table + (f"\n{markdown(self.note)}\n" if self.note else "")

    def to_html(self) -> str:
        """Return it as part of a page, without its title."""
        head = "".join(f"<th>{_html(column.heading)}</th>" for column in self.columns)
        body = [[f"<td>{'<br>'.join(map(_html_line, cell))}</td>" for cell in row] for row in self.rows]
        rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
        return f"<table><tr>{head}</tr>{rows}</table>" + (f"<p>{_html(self.note)}</p>" if self.note else "")

    def to_csv(self) -> str:
        """Return its numbers as they are, without units; mean, spread and seeds in columns of their own."""
        fields: list[list[object]] = []
        for place, column in enumerate(self.columns):
            cells = [row[place] for row in self.rows]
            for k in range(max(map(len, cells), default=1)):
                lines = [cell[k] if k < len(cell) else Text("") for cell in cells]
                name = " ".join(filter(None, [column.heading.replace("\n", " "), *column.lines[k : k + 1]]))
                fields.append([name, *(line.text if isinstance(line, Text) else line.value for line in lines)])
                for field, word in (("spread", self.spread), ("seeds", "seeds")):
                    values = [getattr(line, field, None) for line in lines]
                    if any(value is not None for value in values):
                        fields.append([f"{name} {word}".strip(), *values])
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(zip(*fields, strict=True))
        return file.getvalue()

    def to_latex(self) -> str:
        """Return it for the package booktabs: the first line of every cell, an arrow where more or less is better."""
        spread = any(getattr(cell[0], "spread", None) is not None for row in self.rows for cell in row)
        said = [self.title, self.caption, SPREADS[self.spread] if spread else ""]
        caption = " ".join(text if text.endswith(".") else f"{text}." for text in said if text)
        sides = "".join("r" if column.right else "l" for column in self.columns)
        head = " & ".join(latex(column.heading) + _arrow(column.better) for column in self.columns)
        body = [" & ".join(_latex_line(cell[0]) for cell in row) + r" \\" for row in self.rows]
        begin = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{latex(caption)}}}"]
        begin += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", rf"{head} \\", r"\midrule"]
        return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def rendered(self, suffix: str) -> str:
        """Return it as a file has it whose name ends in one of `FILES`."""
        kinds = (self.to_latex, self.to_csv, self.to_markdown, lambda: html_page(self.title, self.to_html()))
        return dict(zip(FILES, kinds, strict=True))[suffix.lower()]()


def html_page(title: str, body: str) -> str:
    """Return a page that needs no other file; the title is escaped, the body is not."""
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{body}</html>\n"
    )


def _line(content: object) -> Line:
    if content is None:
        return Number(None)
    return content if isinstance(content, Text | Number) else Text(str(content))


def _bold(line: Line, text: str, begin: str, end: str) -> str:
    return f"{begin}{text}{end}" if isinstance(line, Number) and line.best else text


def _markdown_line(line: Line) -> str:
    return _bold(line, markdown(line.text), "**", "**")


def _html(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _html_line(line: Line) -> str:
    text = _bold(line, _html(line.text), "<b>", "</b>")
    return f"<span class='{html.escape(line.style)}'>{text}</span>" if line.style else text


def _latex_line(line: Line) -> str:
    if isinstance(line, Text):
        return latex(line.text) + _arrow(line.better)
    if line.value is None:
        return "--"
    number = r" \pm ".join(map(_math, line.parts))
    return "$" + _bold(line, number, r"\mathbf{", "}") + "$"


def _math(number: str) -> str:
    """A number of `format_number` in LaTeX's mathematics; `inf` and `nan` as words."""
    found = re.fullmatch(r"([+-]?[\d.,]+)(?:e([+-]\d+))?(%?)(?: (\w+))?", number)
    if found is None:
        return rf"\mathrm{{{number}}}"
    digits, exponent, percent, unit = found.groups(default="")
    power = rf" \times 10^{{{int(exponent)}}}" if exponent else ""
    return digits.replace(",", "{,}") + power + percent.replace("%", r"\%") + (rf"\,\mathrm{{{unit}}}" if unit else "")


def _arrow(better: int) -> str:
    return "" if not better else r" $\uparrow$" if better > 0 else r" $\downarrow$"
