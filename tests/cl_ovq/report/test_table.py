"""Tables, read back by readers that know nothing of them: of CSV, HTML, Markdown, LaTeX, and the terminal's text."""

import csv
import html.parser
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from cl_ovq.benchmarks.operations import operations_table
from cl_ovq.benchmarks.operator_report import tables as operator_tables
from cl_ovq.comparison import compare, load_groups
from cl_ovq.comparison.pages import to_table
from cl_ovq.evaluation.aggregates import aggregate
from cl_ovq.report.runs import matrix_table, seeds_table, summary_table
from cl_ovq.report.table import FILES, Column, Number, Table, Text, mean_number
from cl_ovq.runs.result import summary_metrics
from cl_ovq.studies.files import Row, Study, Tuning
from cl_ovq.studies.tables import RowResult, StudyResult

RESULTS = Path(__file__).parents[3] / "docs" / "results"
NASTY = r"a_b & 50% #1 {x} [/b] <i> | \ ~ ^ $y$ `z` -- '' * _c_ &amp; ±"


class Html(html.parser.HTMLParser):
    """The cells of a table, and every tag of a page."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.inside = [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br" and self.rows:
            self.rows[-1][-1] += "\n"
        self.inside = tag in ("td", "th") or (self.inside and tag != "p")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


MACROS = {
    **{"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textasciigrave": "`"},
    **{"textless": "<", "textgreater": ">", "textbar": "|", "pm": "±", "uparrow": "↑", "downarrow": "↓"},
    **{"times": "x", "mathrm": "", "mathbf": "", "caption": "", "centering": "", "toprule": "", "midrule": ""},
    "bottomrule": "",
}


def from_latex(text):
    """Return what LaTeX would set, cells and rows apart (a list of rows), by LaTeX's own rules of what ends a name.

    It refuses what LaTeX would: braces that do not balance, macros that it does not know, special characters as they
    are, a row that begins with what would be an option of the line break before it, mathematics that does not end.
    """
    rows, depth, math, place, after_break = [[""]], 0, False, 0, False
    while place < len(text):
        character = text[place]
        if macro := re.match(r"\\([A-Za-z]+)\s*", text[place:]):
            rows[-1][-1] += MACROS[macro[1]] + " " * (math and macro[0][-1].isspace())
            place += len(macro[0])
            after_break = False
            continue
        place += 1
        if character == "\\":
            following, place = text[place], place + 1
            if following == "\\":
                rows.append([""])
                after_break = True
                continue
            assert following in "&%$#_{},", following
            rows[-1][-1] += "" if following == "," and math else following
        elif character in "{}":
            depth += 1 if character == "{" else -1
            assert depth >= 0
        elif character == "$":
            math = not math
        elif text[place - 1 : place + 2] == "-- " and not rows[-1][-1].strip():  # a dash for what is missing
            rows[-1][-1], place = "--", place + 1
        elif character == "&":
            assert depth == 0
            assert not math
            rows[-1].append("")
        elif character.isspace():
            rows[-1][-1] += " " * (not rows[-1][-1].endswith(" "))
            continue
        else:
            assert character not in "#%~^_<>|`" or (math and character == "^"), text[place - 10 : place + 10]
            assert not (after_break and character in "[*")
            assert text[place - 1 : place + 1] not in ("--", "''", ",,") or math
            rows[-1][-1] += character
        after_break = False
    assert depth == 0
    assert not math
    return [[cell.strip() for cell in row] for row in rows]


def latex_table(text):
    """Return caption and rows of the only table in a text."""
    found = re.fullmatch(
        r"% needs \\usepackage\{booktabs\}\n\\begin\{table\}\n\\centering\n(\\caption.*)\n"
        r"\\begin\{tabular\}\{([lr]+)\}\n\\toprule\n(.*)\\bottomrule\n\\end\{tabular\}\n\\end\{table\}\n",
        text,
        re.DOTALL,
    )
    rows = from_latex(found[3])
    assert rows.pop() == [""]
    assert {len(row) for row in rows} == {len(found[2])}
    return from_latex(found[1])[0][0], rows


def one_line(text):
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", "", " ".join(text.split())).split())


def named(text):
    table = Table(text, Column(text, better=1), title=text, caption=text)
    table.add(text, Number(0.5, "accuracy"))
    return table


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))


@example(NASTY)
@given(names | st.text("\\`*_[]<>|&;#{}$%^~-', ab1", max_size=12))
def test_any_name_is_itself_in_every_format(name):
    table = named(name)
    page = Html(table.to_html())
    assert page.rows == [[name, name], [name, "0.500"]]
    assert page.tags == {"table", "tr", "th", "td", *(["p"] if name else [])}
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [[name, name], [name, "0.5"]]
    caption, rows = latex_table(table.to_latex())
    assert rows == [[one_line(name), f"{one_line(name)} ↑".strip()], [one_line(name), "0.500"]]
    assert one_line(name) in one_line(caption)


@example(NASTY)
@example("&lt;")
@example("_a_ __b__")
@given(st.text("\\`*_[]<>|&;#!~()x1: lt", min_size=1, max_size=12))
def test_any_name_is_itself_in_markdown(name):
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    cells = [token for token in reader.parse(named(f"x{name}x").to_markdown()) if token.type == "inline"]
    assert {child.type for token in cells for child in token.children} <= {"text", "text_special"}
    assert ["".join(child.content for child in token.children) for token in cells][:3] == [f"x{name}x"] * 3


@pytest.mark.parametrize("name", [NASTY, "[/b]", "[red]x[/]", ":smile:", "\\[/]", "\\"])
def test_any_name_is_itself_in_the_terminal(name):
    console = Console(file=io.StringIO(), width=400)
    console.print(named(name))
    lines = console.file.getvalue().splitlines()
    assert [lines[0].strip(), lines[-1].strip()] == [name, name]
    assert lines[4].split(" │ ")[0].removeprefix("│ ").strip() == name


@pytest.mark.parametrize(
    ("number", "text", "latex", "fields"),
    [
        (Number(0.93, "accuracy", spread=0.01, seeds=3), "0.930 +- 0.010", "0.930 ± 0.010", ["0.93", "0.01", "3"]),
        (Number(-0.25, "forgetting", best=True), "-0.250", "-0.250", ["-0.25"]),
        (Number(1_234_567.5, "peak_memory_bytes"), "1.23 MB", "1.23MB", ["1234567.5"]),
        (Number(1234, spec=","), "1,234", "1,234", ["1234"]),
        (Number(1e-5, "squared_error"), "1e-05", "1 x 10-5", ["1e-05"]),
        (Number(0.125, spec=".0%"), "12%", "12%", ["0.125"]),
        (Number(0.1 + 0.2, "accuracy", signed=True), "+0.300", "+0.300", ["0.30000000000000004"]),
        (Number(float("inf"), "accuracy"), "inf", "inf", ["inf"]),
        (Number(None, "accuracy"), "-", "--", [""]),
    ],
)
def test_a_number_in_every_format(number, text, latex, fields):
    table = Table("", "x")
    table.add("row", number)
    assert number.text == text
    assert Html(table.to_html()).rows[1] == ["row", text]
    marks = "**" * number.best
    assert table.to_markdown().splitlines()[2] == f"| row | {marks}{text}{marks} |"
    *_, row = latex_table(table.to_latex())[1]
    assert row[1].replace(" ^", "").replace("^", "") == latex
    assert list(csv.reader(io.StringIO(table.to_csv())))[1] == ["row", *fields]


def test_means_and_lines_have_columns_of_their_own_in_csv():
    table = Table("", Column("a\n(3 seeds)", lines=("", "verdict")), spread="standard deviation")
    table.add("x", (Number(0.5, spread=0.25, seeds=3), Text("better", "green")))
    table.add("y", None)
    head, *rows = csv.reader(io.StringIO(table.to_csv()))
    assert head == ["", "a (3 seeds)", "a (3 seeds) standard deviation", "a (3 seeds) seeds", "a (3 seeds) verdict"]
    assert rows == [["x", "0.5", "0.25", "3", "better"], ["y", "", "", "", ""]]
    assert "<td>0.500 +- 0.250<br><span class='green'>better</span></td>" in table.to_html()
    assert "| 0.500 +- 0.250<br>better |" in table.to_markdown()
    assert "better" not in table.to_latex()


def test_the_best_is_marked_among_what_can_be_compared():
    table = Table("", Column("acc", better=1), Column("loss", better=-1), "other")
    for name, *values in (("a", 0.5, 0.2, 1), ("b", 0.7, 0.1, 2), ("joint", 0.9, 0.0, 3), ("c", 0.2, 0.3, 4)):
        table.add(name, *(Number(value, "accuracy") for value in values))
    table.add("b again", Number(0.70001, "accuracy"), None, None)
    table.add("d", Number(0.1, "accuracy"), None, None)
    table.mark_best(["x", "x", None, "y", "x", "y"], "Bold: best.")
    marked = [[isinstance(cell[0], Number) and cell[0].best for cell in row] for row in table.rows]
    assert [row[1] for row in marked] == [False, True, False, True, True, False]  # alike as they are written
    assert [row[2] for row in marked] == [False, True, False, False, False, False]  # c is alone
    assert not any(row[3] for row in marked)
    assert table.to_latex().count("\\mathbf{") == 4
    assert "Bold: best." in latex_table(table.to_latex())[0]


def group_of(name):
    (group,) = load_groups([str(RESULTS / f"{name}.json")])
    return group


@pytest.fixture(scope="module")
def shipped():
    """The groups of runs in docs/results."""
    names = ("quickstart_stream", "quickstart_task", "quickstart_softmax", "memory_digits")
    return {name: group_of(name) for name in names}


def test_shipped_results_are_the_same_in_every_format(shipped):
    study = Study(
        "s", NASTY, [Row({"model": name}, "quickstart", {}, {}) for name in shipped], [0, 1], Tuning(), {}, {}
    )
    rows = [RowResult({"model": name}, {}, {}, list(group.runs.values())) for name, group in shipped.items()]
    first = next(iter(shipped["quickstart_stream"].runs.values()))
    metrics = {"accuracy": aggregate([run.metrics["accuracy"] for run in rows[0].runs])}
    tables = [
        *(matrix_table(first), summary_table([first]), seeds_table(metrics, rows[0].runs)),
        *operator_tables(json.loads((RESULTS / "operator.json").read_text()), ranges=True),
        *(operations_table(*each) for each in json.loads((RESULTS / "operations.json").read_text()).items()),
        *(StudyResult(study, rows, {}).table(), to_table(compare(list(shipped.values())[:3]))),
    ]
    for table in tables:
        assert all(table.rendered(suffix) for suffix in FILES)
        expected = [[" ".join(line.text for line in cell) for cell in row] for row in table.rows]
        read = [[cell.replace("\n", " ") for cell in row] for row in Html(table.to_html()).rows[1:]]
        assert read == expected
        assert len(list(csv.reader(io.StringIO(table.to_csv())))) == 1 + len(expected)
        _, (_, *rows_of) = latex_table(table.to_latex())
        for row, cells in zip(rows_of, table.rows, strict=True):
            for text, cell in zip(row, cells, strict=True):
                words = cell[0].text.replace("+-", "±").replace(" ", "")
                assert text.rstrip(" ↑↓").replace(" ", "") == ("--" if words == "-" else words)


def test_a_study_in_latex_and_csv(shipped):
    rows = [RowResult({"model": name}, {}, {}, list(group.runs.values())) for name, group in shipped.items()]
    study = Study("s", "Title", [Row(row.labels, "quickstart", {}, {}) for row in rows], [0, 1], Tuning(), {}, {})
    result = StudyResult(study, rows, {})
    caption, (head, *body) = latex_table(result.to_latex())
    assert caption.startswith("Title (2 seeds). Bold: the best mean")
    assert "half the 95 % confidence interval" in caption
    assert head[:3] == ["model", "average accuracy ↑", "forgetting ↓"]
    means = [result.metric(row, "accuracy") for row in rows]
    assert [row[1] for row in body] == [mean_number(found, "accuracy").text.replace("+-", "±") for found in means]
    bold = [
        line.split(" & ")[1].startswith(r"$\mathbf{")
        for line in result.to_latex().splitlines()
        if "±" not in line and line.count(" & ") > 3
    ][1:]
    streams = [json.dumps(row.runs[0].config["stream"]) for row in rows]
    alike = [i for i, stream in enumerate(streams) if streams.count(stream) > 1]
    best = {
        max((i for i in alike if streams[i] == stream), key=lambda i: means[i].mean)
        for stream in streams
        if streams.count(stream) > 1
    }
    assert {i for i, mark in enumerate(bold) if mark} == best
    first = next(csv.DictReader(io.StringIO(result.table().to_csv())))
    assert float(first["average accuracy"]) == means[0].mean
    assert float(first["average accuracy interval"]) == means[0].interval
    assert int(first["average accuracy seeds"]) == means[0].seeds


def test_the_table_of_compare_can_be_written(call, tmp_path):
    runs = [RESULTS / f"quickstart_{name}.json" for name in ("stream", "softmax")]
    for suffix in FILES:
        code, out, _ = call("compare", *runs, "--output", tmp_path / f"table{suffix}")
        assert code == 0
        assert f"written: {tmp_path / f'table{suffix}'}" in out
    caption, rows = latex_table((tmp_path / "table.tex").read_text())
    (accuracy,) = [row for row in rows if row[0] == "average accuracy ↑"]
    values = [summary_metrics(run)["accuracy"] for run in group_of("quickstart_stream").runs.values()]
    assert accuracy[1] == mean_number(aggregate(values), "accuracy").text.replace("+-", "±")
    assert "p-values" not in caption
    with (tmp_path / "table.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["ovq-stream replay (5 seeds)"]) == aggregate(values).mean
    code, _, said = call("compare", *runs, "--output", "table.xlsx")
    assert code == 2
    assert (
        said.strip()
        == "error: output: table.xlsx has the extension '.xlsx', which is not a table format: known: .tex, .csv, .md, "
        ".html"
    )
