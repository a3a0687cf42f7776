"""Tables of streams of hundreds of experiences are short enough to be read."""

import io

from long_figures import matrix_of
from PIL import Image
from rich.console import Console

from cl_ovq.evaluation import drawing
from cl_ovq.evaluation.metrics import to_lists
from cl_ovq.metric_names import COLUMNS
from cl_ovq.report import runs as report
from cl_ovq.runs.reevaluate import Evaluation
from cl_ovq.runs.result import Result
from cl_ovq.tracking.notes import run_note


def result_of(experiences):
    facts = {"wall_seconds": 1.0, "train_steps": 3, "peak_memory_bytes": 4, "device": "cpu"}
    matrix = to_lists(matrix_of(experiences))
    return Result(None, "a run", matrix, {}, {"accuracy": 0.5}, {"scope": "none"}, {}, facts, "runs/a")


def printed(table, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_a_matrix_of_hundreds_of_experiences_is_a_table_that_can_be_read():
    result = result_of(200)
    text = printed(report.matrix_table(result))
    assert len(text.splitlines()) < 25
    assert "12 of 200 experiences; all of them are in results.json" in text
    (last,) = [line for line in text.splitlines() if "after 200" in line]
    cells = [cell.strip() for cell in last.strip("│ ").split("│")]
    assert cells[1] == f"{result.matrix[200][0]:.3f}"
    assert cells[-1] == f"{result.matrix[200][199]:.3f}"
    assert len(cells) == 1 + COLUMNS
    assert "…" not in text  # nothing was cut


def test_a_short_matrix_is_shown_whole():
    text = printed(report.matrix_table(result_of(COLUMNS)))
    assert "experiences;" not in text
    assert all(f"after {i} " in text for i in range(1, COLUMNS + 1))


def test_the_note_of_a_long_run_can_be_read():
    note = run_note(result_of(500))
    assert len(note) < 5000
    assert "12 of 500 experiences" in note
    assert "| after 500 |" in note


def test_an_evaluation_of_hundreds_of_experiences_is_one_table():
    values = {"accuracy": [i / 300 for i in range(300)]}
    text = printed(Evaluation("run", 300, "digits", True, "accuracy", values, {}, [], []).to_table())
    assert "12 of 300 experiences" in text
    assert "0.997" in text  # the last one
    assert "0.498" in text  # the mean, of all


def test_a_stream_of_hundreds_of_experiences_is_one_screen(call, tmp_path):
    code, out, err = call("show-stream", "rotated_digits", "experiences=60", "--output", "sheet.png")
    assert (code, err) == (0, "")
    assert "20 of 60 experiences" in out
    assert len(out.splitlines()) < 40
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert max(sheet.size) <= 120 * drawing.INCHES
    code, out, err = call("show-stream", "rebinding", "experiences=40", "pairs=2", "length=16", "train=400")
    assert (code, err) == (0, "")
    assert out.count("a training sequence") == 5
