"""Numbers in tables, by what they count."""

import contextlib
import io
import itertools

import pytest
from forked import ForkedCommand
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cl_ovq.comparison import compare, load_groups
from cl_ovq.comparison.pages import to_table
from cl_ovq.metric_names import format_number, own_metrics, title
from cl_ovq.report.runs import seeds_table, summary_table
from cl_ovq.runs.seeds import run_seeds
from cl_ovq.tracking.notes import run_note, seeds_note

QUICK = ("model.name=pixels", "model.head=memory", "memory.capacity=50", "strategy.name=naive")


def test_metrics_of_ones_own_are_those_that_are_not_ours_and_can_be_printed():
    assert own_metrics([{"accuracy": 1.0, "bias": 2.0}, {"bias": 3.0, "a\x1b[31m": 4.0, "b\n": 5.0}]) == ["bias"]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.12345, "0.123"),
        ("forgetting", -0.0004, "-0.000"),
        ("peak_memory_bytes", 1.0054e9, "1.01 GB"),
        ("peak_memory_bytes", -237_568, "-238 kB"),
        ("dictionary/bytes", 0, "0 B"),
        ("dictionary/bytes", 999_600, "1.00 MB"),
        ("memory_bytes", 12_345_678, "12.3 MB"),
        ("memory_bytes", 512.4, "512 B"),
        ("dictionary/size", 1234.0, "1,234"),
        ("dictionary/size", 22.5, "22.5"),
        ("dictionary/plateau_tokens", 1.015e9, "1,015,000,000"),
        ("wall_seconds", 3.14159, "3.1"),
        ("squared_error", 0.00012, "0.00012"),
        ("average_incremental_bits_per_byte", 2.34567, "2.346"),
        ("accuracy", None, "-"),
    ],
)
def test_a_number_is_written_as_its_metric_asks(metric, value, text):
    assert format_number(value, metric) == text


def test_a_difference_has_its_sign():
    assert [format_number(value, "peak_memory_bytes", signed=True) for value in (1e6, -1e6)] == ["+1.00 MB", "-1.00 MB"]
    assert [format_number(value, "accuracy", signed=True) for value in (0.5, -0.5)] == ["+0.500", "-0.500"]


@given(st.floats(1, 1e14))
def test_bytes_are_right_to_three_digits(value):
    number, unit = format_number(value, "bytes").split()
    assert float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] == pytest.approx(value, rel=6e-3, abs=0.5)
    assert unit == "GB" or float(number) < 1000


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with contextlib.chdir(folder):
        return run_seeds(tiny(*QUICK, "seeds=2", f"output_dir={folder / 'out'}"), Console(file=io.StringIO()))


def printed(*tables, width=200):
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_no_table_has_raw_names_or_powers_of_ten(two):
    compared = compare(load_groups([run.output_dir for run in two.runs]))
    cells = [line.text for row in to_table(compared).rows for cell in row for line in cell[:2]]
    for text in (
        printed(seeds_table(two.metrics, two.runs), summary_table(two.runs)),
        run_note(two.runs[0]).rpartition("Results on disk")[0],
        seeds_note(two.metrics, two.runs),
        "\n".join(cells),
    ):
        assert "e+" not in text
        text = text.replace("x86_64", "")
        assert "_" not in text
        assert "/" not in text.replace("1/2", "")
    memory = two.metrics["peak_memory_bytes"].mean
    assert title("peak_memory_bytes") == "peak memory"
    assert format_number(memory, "peak_memory_bytes") in printed(seeds_table(two.metrics, two.runs))
    assert format_number(memory, "peak_memory_bytes") in seeds_note(two.metrics, two.runs)
    (row,) = [cells for name, *cells in to_table(compared).rows if name[0].text == "peak memory"]
    assert all(line.text.partition(" +-")[0].endswith("B") for cell in row for line in cell)


@pytest.mark.parametrize("width", [50, 70, 100])
def test_the_note_below_a_table_is_wrapped_once(two, width):
    """A line that is broken twice leaves a short one in the middle of a sentence."""
    lines = printed(summary_table(two.runs[:1]), width=width).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("In a class"))
    note = [line.strip() for line in lines[begin:]]
    room = max(map(len, lines))
    for line, following in itertools.pairwise(note):
        assert len(line) + 1 + len(following.split()[0]) > room - 2, note


def test_seeds_say_no_more_than_single_runs(tiny_path, tmp_path):
    done = ForkedCommand("run", tiny_path, *QUICK, "seeds=2", folder=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert "arn" not in done.stderr
    assert len(done.stderr.splitlines()) == 6, done.stderr  # a title and two experiences for each
