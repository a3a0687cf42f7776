"""Names that somebody else gave are shown as they are: in the terminal, in HTML and in Markdown."""

import html.parser
import io
import json

import pytest
from rich.console import Console

from cl_ovq.comparison import compare, load_groups
from cl_ovq.comparison.pages import to_table, write_page
from cl_ovq.evaluation.aggregates import Aggregate
from cl_ovq.evaluation.length_generalization import lengths_figure
from cl_ovq.report.markup import code, code_block, markdown
from cl_ovq.report.runs import matrix_table, seeds_table, summary_table
from cl_ovq.runs.result import Result
from cl_ovq.runs.run import run_experiment

NAMES = [
    "[/b]",
    "[bold]",
    "[red]x[/red]",
    "[link=https://a.b]x[/link]",
    "<script>alert(1)</script>",
    "a|b",
    "\\[/]",
    "\\",
]


def rendered(table):
    """Return a table as wide text."""
    file = io.StringIO()
    Console(file=file, width=400).print(table)
    return file.getvalue()


@pytest.fixture(scope="module")
def named(run, tmp_path_factory):
    """`named(name)`: the directory of a run of that name."""
    first = run()

    def named(name):
        folder = tmp_path_factory.mktemp("named")
        result = Result(**json.loads(first.to_json()) | {"run_name": name})
        result.write(folder)
        return folder

    return named


@pytest.mark.parametrize("name", NAMES)
def test_in_the_terminal(named, name):
    result = Result.read(named(name))
    many = {"accuracy": Aggregate(0.5, 0.1, 0.1, 2)}, [result, result]
    tables = matrix_table(result), summary_table([result]), seeds_table(*many)
    assert all(name in rendered(table) for table in tables)
    assert name in rendered(to_table(compare(load_groups([str(named(name)), str(named("other"))]))))


@pytest.mark.parametrize("name", NAMES)
def test_of_a_run(tiny, tmp_path, name):
    file = io.StringIO()
    config = tiny(f"tracking.run_name={name}", f"output_dir={tmp_path / 'a[/b]'}")
    result = run_experiment(config, Console(file=file, width=400))
    assert result.run_name == name
    assert f"{name} on split_digits" in file.getvalue()
    run_experiment(config, Console(file=file, width=400), resume=True)
    assert f"{tmp_path / 'a[/b]'} is already finished" in file.getvalue()


def test_what_a_terminal_obeys_is_not_printed(named):
    result = Result.read(named("\033[2Jx\a"))
    table = to_table(compare(load_groups([str(named("\033[2Jx\a")), str(named("other"))])))
    for shown in (rendered(summary_table([result])), rendered(table)):
        assert "[2Jx" in shown
        assert "\033" not in shown
        assert "\a" not in shown


def test_names_in_figures_are_no_formulas(named, tiny, tmp_path):
    name = r"$\nothing{$ 50$ x^$"
    write_page(compare(load_groups([str(named(name)), str(named("other"))])), tmp_path / "page.html")
    file = io.StringIO()
    config = tiny(f"tracking.run_name={name}", f"output_dir={tmp_path / 'a'}", "figures=true")
    result = run_experiment(config, Console(file=file, width=400))
    assert "was not drawn" not in file.getvalue()
    assert "matrix" in result.artifacts
    figure = lengths_figure(
        {name: [{"tokens": 1, "value": 0.5, "state_bytes": 0, "distances": [], "quantity": "accuracy"}]}
    )
    figure.savefig(io.BytesIO())
    (shown,) = (text.get_text() for text in figure.legends[0].get_texts())
    assert shown.replace(r"\$", "$") == name


class Tags(html.parser.HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def test_in_a_page(named, tmp_path):
    pages = []
    for name in ("plain", "<script>alert(1)</script>'\"<img src=x onerror=y>"):
        folder = named(name)
        content = json.loads((folder / "results.json").read_text())
        content["config"]["model"]["width"] = name
        (folder / "results.json").write_text(json.dumps(content))
        write_page(compare(load_groups([str(folder), str(named("other"))])), tmp_path / "page.html")
        page = Tags()
        page.feed((tmp_path / "page.html").read_text())
        pages.append((page, name))
    assert pages[0][0].tags == pages[1][0].tags
    assert all(name in page.text for page, name in pages)


@pytest.mark.parametrize("text", [*NAMES, "`", "``x`", "```", "![x](https://a.b)", "two\nlines", "*a* _b_c"])
def test_in_markdown(text):
    """As the CommonMark reader of rich's own Markdown has it."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    told = " ".join(text.split("\n"))
    cells = reader.parse(f"| a | b |\n|---|---|\n| {markdown(text)} | {code(text)} |")
    kinds = {child.type for token in cells for child in token.children or ()}
    assert not kinds & {"html_inline", "image", "link_open"}
    (line,) = reader.parseInline(f"x {markdown(text)} y")
    assert {child.type for child in line.children} <= {"text", "text_special"}
    assert "".join(child.content for child in line.children) == f"x {told} y"
    (block,) = reader.parse(code_block(text))
    assert (block.type, block.content) == ("fence", f"{text}\n")
    if "\n" not in text:
        (inline,) = reader.parseInline(code(text))
        assert [(child.type, child.content) for child in inline.children] == [("code_inline", text)]
