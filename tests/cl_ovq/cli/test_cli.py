"""The command line, as a person meets it: in processes of its own where that matters."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from forked import SECONDS, ForkedCommand
from mlflow import MlflowClient

from cl_ovq.cli.listing import KINDS, PARTS, options_of
from cl_ovq.config import load_config, to_dict
from cl_ovq.config.parts import default_of

SCRIPT = Path(sys.executable).with_name("cl-ovq")  # what the installation made


@functools.cache
def program() -> tuple[str, ...]:
    return (str(SCRIPT),) if SCRIPT.exists() else (sys.executable, "-c", "from cl_ovq.cli import main; main()")


def cl_ovq(*arguments, folder):
    """Run the command line in a new process; the folder is its working directory."""
    return subprocess.run([*program(), *map(str, arguments)], capture_output=True, text=True, cwd=folder, check=False)


# Mistakes


@pytest.mark.parametrize(
    "command",
    [
        ("published", "crosscheck_fashion_naive", "--output"),
        ("study", "drift", "--output"),
        ("compare", "a", "b", "--html"),
        ("compare", "a", "b", "--output"),
        ("bench", "sweep", "--output"),
        ("bench", "operations", "--output"),
        ("bench", "operator", "--output"),
    ],
)
def test_where_a_result_cannot_be_written_is_said_before_the_work(call, tmp_path, command):
    (tmp_path / "file").write_text("")
    code, out, error = call(*command, tmp_path / "file" / "below" / "result.md")
    assert (code, out) == (2, "")
    assert "file/below/result.md cannot be written: " in error.replace("\n", "")
    assert len(error.splitlines()) == 1
    code, _, error = call(*command, "/proc/x/y.md")  # whose folder looks as if it could be written
    assert (code, error.count("\n")) == (2, 1)
    assert "/proc/x/y.md cannot be written: " in error
    if "--html" in command:
        code, _, error = call(*command, tmp_path)
        assert (code, error) == (2, f"error: {tmp_path} cannot be written: it is a folder\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "TINY", "--json", "model.mixr=ovq"), "error: unknown key 'model.mixr': did you mean 'model.mixer'?"),
        (("run", "TINY", "strategy.name=nave"), "error: strategy.name: unknown strategy 'nave': did you mean 'naive'?"),
        (("show", "quickstrat"), "error: no experiment 'quickstrat': did you mean 'quickstart'?"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tiny_path, tmp_path, arguments, line):
    done = ForkedCommand(*(tiny_path if word == "TINY" else word for word in arguments), folder=tmp_path).wait()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "show"])
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.width=wide"], "error: model.width: 'wide' is not a whole number"),
        (["model.mixer=oqv"], "error: model.mixer: unknown mixer 'oqv': did you mean 'ovq'? known: "),
        (["model.heads=5"], "error: model.heads: 5 heads do not divide model.width=16"),
        (["optimizer.learning_rate=.nan"], "error: optimizer.learning_rate: nan is not a finite number"),
        (["stream.name=digits"], "error: stream.name: unknown stream 'digits': did you mean 'split_digits'? known: "),
        (["model='[red]x[/]'"], "error: model: '[red]x[/]' is not a section"),
        (["seed"], "error: override 'seed' is not of the form key=value"),
        (["device=tpu"], "error: device: unknown device 'tpu': known: auto, cpu, cuda, cuda:N"),
        (["output_dir=HERE"], "error: output_dir: HERE already holds the results of a run: add --overwrite to replace"),
    ],
)
def test_every_mistake_is_one_line(call, tiny_path, tmp_path, command, overrides, line):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "results.json").write_text("{}")
    overrides = [override.replace("HERE", str(taken)) for override in overrides]
    code, out, err = call(command, tiny_path, *overrides)
    assert (code, out) == (2, "")
    assert err.startswith(line.replace("HERE", str(taken)))
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert [path.name for path in taken.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "override", ["stream.experiences=11", "model.patch_size=3", "stream.class_order=[1]", "tracking.uri=nonsense://x"]
)
def test_mistakes_that_show_with_the_data_leave_nothing_either(call, tiny_path, tmp_path, override):
    code, out, err = call("run", tiny_path, override, "tracking.enabled=true", "--json")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {override.split('=')[0].split('.')[0]}")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_kind_of_list(call):
    code, out, err = call("list", "mixer")
    assert (code, out) == (2, "")
    assert err.startswith("error: unknown kind 'mixer': did you mean 'mixers'? known: ")


def test_unknown_command_and_option(call):
    assert call("runn")[0] == 2
    assert call("run", "quickstart", "--jsn")[0] == 2


# What it shows


@pytest.mark.parametrize("kind", list(KINDS))
def test_list(call, kind):
    code, out, err = call("list", kind)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].strip() == kind
    for name, summary in KINDS[kind]().items():
        assert any(name in line and summary.split()[0] in line for line in out.splitlines()), name


@pytest.mark.parametrize("kind", PARTS)
def test_every_option_of_a_part_is_listed_with_its_default(kind):
    for name, part in PARTS[kind].items():
        listed = options_of(kind, name)
        for field in fields(part.Options):
            texts = [text for key, text in listed.items() if key.endswith(f".{field.name}")]
            assert texts  # more than one where parts of several sections are of this kind
            for text in texts:
                assert text.startswith(field.metadata["help"])
                assert yaml.safe_load(text.rpartition("; default ")[2]) == default_of(field), text


def test_the_options_of_a_part(call):
    code, out, _ = call("list", "strategies", "derpp")
    assert code == 0
    assert re.search(r"strategy\.beta .*loss weight of past samples' labels \(>= 0\); default 0\.5", out)
    assert "it has no options" in call("list", "strategies", "naive")[1]
    code, _, error = call("list", "strategies", "derp")
    assert (code, error.startswith("error: unknown strategy 'derp': did you mean 'derpp'?")) == (2, True)
    assert "have no options: kinds with options" in call("list", "studies", "drift")[2]


def test_list_of_everything_is_a_page_of_names(call):
    code, out, _ = call("list")
    assert code == 0
    assert len(out.splitlines()) < 130
    for kind, parts in KINDS.items():
        assert re.search(rf"^\W*{kind} ", out, re.MULTILINE)
        assert all(name in out for name in parts() if kind != "keys"), kind


def test_show_is_the_resolved_configuration(call, tiny_path, tmp_path):
    code, out, err = call("show", tiny_path, "model.depth=3", "seed=${model.depth}")
    assert (code, err) == (0, "")
    shown = yaml.safe_load(out)
    assert shown == to_dict(load_config(tiny_path, ["model.depth=3", "seed=3"]))
    assert shown["seed"] == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "-h"]])
def test_help_loads_nothing_heavy(tmp_path, arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['cl-ovq', *{arguments!r}]\n"
        "from cl_ovq.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    heavy = {'torch', 'avalanche', 'mlflow', 'ray', 'omegaconf', 'matplotlib', 'numpy'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    assert "Usage:" in done.stdout


# Runs


@pytest.fixture(scope="module")
def json_run(tiny_path, tmp_path_factory):
    """A run with --json in a process and a directory of its own, tracked in the default store."""
    folder = tmp_path_factory.mktemp("json")
    done = cl_ovq(
        "run", tiny_path, "--json", "tracking.enabled=true", "output_dir=out", "seed=3", "figures=true", folder=folder
    )
    assert done.returncode == 0, done.stderr
    return done, folder


def test_json_is_one_object_and_the_same_as_the_file(json_run):
    done, folder = json_run
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "out" / "results.json").read_text())
    assert {"run_id", "matrix", "metrics", "dictionary", "config", "provenance", "artifacts"} <= set(result)
    assert [len(row) for row in result["matrix"]] == [2, 2, 2]
    assert {"accuracy", "forgetting", "backward_transfer", "forward_transfer", "learning_accuracy"} <= set(
        result["metrics"]
    )
    for file in result["artifacts"].values():
        assert (folder / result["output_dir"] / file).stat().st_size > 100


def test_everything_else_goes_to_standard_error(json_run):
    done, _ = json_run
    assert "experience 1/2" in done.stderr
    assert "experience 2/2" in done.stderr
    assert "Warning" not in done.stderr
    assert len(done.stderr.splitlines()) < 10


def test_the_default_store_lies_beside_the_runs(json_run):
    done, folder = json_run
    result = json.loads(done.stdout)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
    found = client.get_run(result["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["accuracy"] == result["metrics"]["accuracy"]
    assert found.info.artifact_uri.startswith((folder / "runs" / "mlartifacts").as_uri())
    assert {path.name for path in folder.iterdir()} == {"out", "runs"}


def test_another_process_finds_the_same(json_run, run):
    result, here = json.loads(json_run[0].stdout), run("seed=3")
    for part in ("matrix", "matrices", "metrics", "dictionary"):
        assert result[part] == json.loads(here.to_json())[part], part


def test_a_directory_with_results_is_refused(json_run, call, tiny_path):
    _, folder = json_run
    before = (folder / "out" / "results.json").read_bytes()
    code, out, err = call("run", tiny_path, f"output_dir={folder / 'out'}")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: output_dir: {folder / 'out'} already holds the results of a run")
    assert (folder / "out" / "results.json").read_bytes() == before


def test_tables_for_people(call, tiny_path, tmp_path):
    code, out, _ = call("run", tiny_path, "output_dir=out")
    assert code == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "before training" in out
    for row in result["matrix"]:
        assert all(f"{value:.3f}" in out for value in row)
    assert f"{result['metrics']['forward_transfer_task_masked']:.3f}" in out
    assert "task-masked" in out
    assert out.splitlines()[-1] == "results: out"


def test_directories_of_runs_that_start_in_the_same_second(call, tiny_path, tmp_path):
    for _ in range(2):
        assert call("run", tiny_path, "stream.experiences=1", "model.mixer=softmax")[0] == 0
    assert len(list((tmp_path / "runs" / "split_digits").iterdir())) == 2


@pytest.mark.parametrize(("blow", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_is_marked_killed_and_quiet(tiny_path, tmp_path, store, blow, code):
    experiment = f"interrupted by {blow.name}"
    overrides = ["tracking.enabled=true", f"tracking.uri={store}", f"tracking.experiment={experiment}"]
    client = MlflowClient(tracking_uri=store)
    process = ForkedCommand("run", tiny_path, *overrides, "strategy.epochs=100000", "output_dir=out", folder=tmp_path)
    try:
        deadline = time.monotonic() + SECONDS
        found = None
        while found is None or not client.get_metric_history(found.info.run_id, "loss/train"):
            assert process.returncode is None, process.stderr
            assert time.monotonic() < deadline
            time.sleep(0.1)
            if made := client.get_experiment_by_name(experiment):
                found = next(iter(client.search_runs([made.experiment_id])), None)
        assert found.info.status == "RUNNING"
        process.send_signal(blow)
        process.wait()
    finally:
        process.kill()
    assert process.returncode == code
    assert client.get_run(found.info.run_id).info.status == "KILLED"
    said = process.stdout + process.stderr
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 4
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_fault_of_the_program_is_a_traceback(tiny_path):
    """A fault of the program is not dressed up as a mistake of the user."""
    code = (
        "import sys\n"
        "from cl_ovq import cli\nfrom cl_ovq.runs import checking\n"
        "def broken(*_): raise ZeroDivisionError('a fault')\n"
        "checking.check_config = broken\n"
        f"sys.argv = ['cl-ovq', 'show', {str(tiny_path)!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"}, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: a fault"
