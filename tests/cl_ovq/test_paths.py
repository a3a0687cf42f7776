"""Names that people give become names of files that stay where they belong, and paths are those that people mean."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cl_ovq.errors import UserError
from cl_ovq.paths import NAME_BYTES, expanded, is_file, is_there, make_folder, safe_name
from cl_ovq.studies import load_study
from cl_ovq.studies.runs import _Tasks

QUICK = ("stream.experiences=1", "model.name=pixels", "model.head=memory", "memory.capacity=50", "strategy.name=naive")
NAMES = [
    "../../x",
    "/abs/x",
    "..",
    ".",
    "~/x",
    "n" * 300,
    "é" * 300,
    "a\nb",
    "a/../../../b",
    "",
    " ",
    "-",
    "#?%20",
    "日本語 1",
]


@given(text=st.text(st.characters(codec="utf-8")))
@example(text="..")
@example(text="")
@example(text="." * 300)
def test_a_safe_name_is_one_step_of_a_path(text):
    name = safe_name(text)
    path = Path("runs", name)
    assert path.parts == ("runs", name)
    assert os.path.normpath(path) == str(path)
    assert not name.startswith((".", "-", "~"))
    assert len(name.encode()) <= NAME_BYTES
    assert safe_name(name) == name


def test_safe_names_that_are_shortened_stay_apart():
    assert safe_name("ovq-stream naive seed 0") == "ovq-stream-naive-seed-0"
    assert safe_name("n" * 300 + "1") != safe_name("n" * 300 + "2")


@pytest.mark.parametrize("name", NAMES)
def test_runs_stay_under_their_folder_whatever_their_name(call, tiny_path, tmp_path, name):
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    with contextlib.chdir(inside):
        given = f"tracking.run_name={name}" if name.strip() else f"tracking.run_name='{name}'"
        code, out, error = call("run", tiny_path, *QUICK, given)
    assert (code, error.count("Traceback")) == (0, 0), error
    assert [path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()] == [
        ("deep", "er")
    ] * len([path for path in tmp_path.rglob("*") if path.is_file()])
    (run,) = (inside / "runs" / "split_digits").iterdir()
    assert (run / "results.json").exists()
    assert out.splitlines()[-1] == f"results: {run.relative_to(inside)}"


@pytest.mark.parametrize("label", [name for name in NAMES if name.strip()])
def test_rows_of_studies_stay_under_their_folder(tmp_path, label):
    import yaml

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"seeds": 1, "grids": [{"row": {label: {"experiment": "quickstart"}}}]}))
    tasks = _Tasks(load_study(str(path)), tmp_path / "home")
    assert tasks._row_directory(0).parent == tmp_path / "home"
    assert os.path.normpath(tasks._row_directory(0)) == str(tasks._row_directory(0))


def test_output_directory_in_the_home_directory(call, tiny_path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert call("run", tiny_path, *QUICK, "output_dir=~/x")[0] == 0
    assert call("run", tiny_path, *QUICK, "seeds=2", "output_dir=~/y")[0] == 0
    assert (tmp_path / "home" / "x" / "results.json").exists()
    assert (tmp_path / "home" / "y" / "seed_1" / "results.json").exists()
    assert not (tmp_path / "~").exists()
    for name in ("x", "y"):  # and what is there is found there
        code, _, error = call("run", tiny_path, *QUICK, f"seeds={'xy'.index(name) + 1}", f"output_dir=~/{name}")
        assert (code, len(error.splitlines())) == (2, 1)
        assert "already holds the results of" in error
    code, out, _ = call("run", tiny_path, *QUICK, "output_dir=~/x", "--resume")
    assert (code, out.splitlines()[-1]) == (0, f"results: {tmp_path}/home/x")
    code, _, error = call("run", tiny_path, *QUICK, "output_dir=~nobody-at-all/x")
    assert (code, error) == (2, "error: ~nobody-at-all/x: there is no such home directory\n")
    code, out, _ = call("export", "nothing", "--csv", "--output=~/x/../t.csv", "--uri=sqlite:///~/s.db")
    assert code == 2
    assert (tmp_path / "home" / "s.db").exists()


@pytest.mark.parametrize("place", ["/proc", "FILE"])
def test_a_working_directory_that_cannot_be_written_to(call, tiny_path, tmp_path, monkeypatch, place):
    if place == "FILE":
        (tmp_path / "runs").write_text("")
        place = tmp_path
    monkeypatch.chdir(place)
    for overrides in ((), ("tracking.enabled=true",), ("seeds=2",), ("output_dir=runs/x",)):
        code, out, error = call("run", tiny_path, *QUICK, *overrides)
        assert (code, out, len(error.splitlines())) == (2, "", 1), error
        assert error.startswith(
            ("error: output_dir: cannot make the directory runs", "error: tracking.uri: cannot open")
        )


LONG = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        ("run", "TINY", f"output_dir={LONG}"),
        ("evaluate", LONG),
        ("compare", LONG, "a\0b"),
        ("lengths", LONG),
        ("sync", LONG),
        ("sweep", LONG),
        ("study", LONG),
        ("published", LONG),
        ("study", "drift", f"--directory={LONG}"),
        ("published", "crosscheck_fashion_naive", f"--directory={LONG}/a"),
        ("sweep", "quick", f"--directory=a/{LONG}"),
        ("show-stream", "split_digits", f"--output={LONG}"),
        ("export", "x", "--csv", f"--output={LONG}"),
        ("compare", "a", "b", f"--html={LONG}"),
    ],
    ids=lambda words: " ".join(words[:1] + words[2:])[:30],
)
def test_names_that_no_file_can_have_are_one_line(call, tiny_path, tmp_path, command):
    code, out, error = call(*(str(tiny_path) if word == "TINY" else word for word in command))
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be(tmp_path):
    for name in (LONG, "a\0b", ""):
        assert not is_file(Path(name))
    assert not is_there(Path(LONG))
    assert expanded("a~b/~") == Path("a~b/~")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^key: cannot make the directory .*file/below: Not a directory$"):
        make_folder(tmp_path / "file" / "below", "key")
