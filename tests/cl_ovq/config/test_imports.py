"""Parts in a file and a package of the user's own, in everything that the platform does, and never by themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from forked import ForkedCommand
from sklearn.naive_bayes import GaussianNB

import cl_ovq
from cl_ovq.config import from_stored
from cl_ovq.imports import VARIABLE, as_options
from cl_ovq.models.saving import load_model, save_model
from cl_ovq.runs.setup import load_stream
from streams import rows_of

STUDY = """
title: Own
seeds: 1
grids:
- stream:
    Pairs: {experiment: own.yaml}
  factor:
    half: {strategy.factor: 0.5}
"""


def elsewhere(*arguments, **environment):
    """The command line in a process that knows nothing yet."""
    command = [sys.executable, "-m", "cl_ovq", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def forked(*arguments):
    """The command line in a process that knows what the platform has, and no more."""
    return ForkedCommand(*arguments).wait()


def test_a_configuration_names_its_file(lab, call):
    code, out, error = call("run", "own.yaml", "output_dir=out", "--json")
    assert code == 0, error
    found = json.loads(out)
    assert found["config"]["strategy"] == {"name": "shrink", "epochs": 1, "batch_size": 150, "factor": 0.9}
    assert found["config"]["imports"] == [str(lab / "parts.py")]
    assert call("run", "own.yaml", "output_dir=out", "--resume", "--json")[1] == out
    assert (lab / "imported").read_text() == "x"  # once in a process
    assert "factor of all weights" in call("list", "strategies", "shrink")[1]
    assert call("show", "own.yaml", "strategy.factor=-1")[2].startswith("error: strategy.factor: -1 is too small")
    assert found["metrics"]["worst_experience"] == min(found["matrix"][-1])
    assert "worst_experience" in call("list", "metrics")[1]
    code, compared, error = call("compare", "out", "out", "--json")
    assert code == 0, error
    assert "worst_experience" in compared
    code, out, error = call("evaluate", "out", "--json")
    assert (code, json.loads(out)["values"]["accuracy"]) == (0, found["matrix"][-1]), error


def test_from_python_a_file_is_imported_by_the_one_who_says_so(lab):
    asked = {"stream": {"name": "split_digits"}, "imports": ["./parts.py"], "figures": False}
    with pytest.raises(cl_ovq.UserError, match=r"^imports: .*parts\.py: required by .* or call cl_ovq\.import_parts$"):
        cl_ovq.run(asked, {"tracking.enabled": False}, quiet=True)
    assert not (lab / "imported").exists()
    cl_ovq.import_parts(["parts.py"])
    result = cl_ovq.run("own.yaml", {"output_dir": "out"}, quiet=True)
    assert result.config["strategy"]["name"] == "shrink"
    assert (lab / "imported").read_text() == "x"


def test_a_study_chooses_by_a_metric_of_the_page(lab):
    tuning = "tuning: {metric: worst_experience, grid: {strategy.factor: [0.1, 1.0]}}"
    text = STUDY.partition("  factor:")[0].replace("seeds: 1", f"seeds: 1\n{tuning}")
    (lab / "study.yaml").write_text(text)
    cl_ovq.import_parts(["parts.py"])
    (row,) = cl_ovq.study("study.yaml", quiet=True).rows
    tuned = [cl_ovq.load(path.parent) for path in lab.rglob("validation-*/results.json")]
    wanted = {run.config["strategy"]["factor"]: min(run.matrix[-1]) for run in tuned}
    assert {json.loads(point)["strategy.factor"]: score for point, score in row.scores.items()} == wanted
    (lab / "study.yaml").write_text(text.replace("worst_experience", "worst_experiment"))
    with pytest.raises(cl_ovq.UserError, match=r"^unknown metric at tuning\.metric 'worst_experiment': did you mean"):
        cl_ovq.study("study.yaml", quiet=True)


def test_a_model_of_the_page(lab, call):
    code, out, error = call("run", "own.yaml", "model.name=two_layers", "model.hidden=8", "output_dir=out", "--json")
    assert code == 0, error
    assert json.loads(out)["provenance"]["parameters"] == 65 * 8 + 9 * 10
    assert json.loads(out)["config"]["model"]["hidden"] == 8


def test_a_head_of_the_page(lab, call):
    overrides = ("model.head=cosine", "model.mixer=linear", "strategy.name=naive", "output_dir=out")
    code, out, error = call("run", "own.yaml", "--import", "parts.py", *overrides, "--json")
    assert code == 0, error
    assert json.loads(out)["config"]["model"]["sharpness"] == 10
    network = cl_ovq.load("out").model()
    assert network.head.sharpness == 10
    features = network.features(torch.rand(3, 1, 8, 8))
    assert torch.allclose(
        network.head(features), 10 * torch.cosine_similarity(features[:, None], network.head.weight, -1)
    )
    assert "model.sharpness" in call("list", "heads", "cosine")[1]
    code, out, error = call("show", "own.yaml", *overrides[:3], "model.sharpness=-1")
    assert (code, out, error.startswith("error: model.sharpness: -1 is too small")) == (2, "", True), error
    code, out, error = call("run", "own.yaml", *overrides[:2], "strategy.name=slda")
    line = "error: model.head: 'cosine' cannot be combined with strategy.name=slda, which is a head itself: use "
    assert (code, error) == (2, f"{line}model.head=linear\n")


def test_a_head_without_gradients_of_the_page(lab, call):
    """It is the method of that name, whatever the batches, with options, bytes, and a place in saved models."""
    overrides = ("model.name=two_layers", "strategy.name=naive_bayes", "strategy.smoothing=0.02", "output_dir=out")
    code, out, error = call("run", "own.yaml", *overrides, "checkpoint.enabled=true", "--json")
    assert code == 0, error
    assert json.loads(out)["provenance"]["method_bytes"] == 10 * (8 + 2 * 32 * 8)
    network, config = cl_ovq.load("out").model(), from_stored(json.loads(out)["config"])
    stream = load_stream(config)
    rows = torch.cat([rows_of(data.dataset) for data in stream.benchmark.streams["train"]])
    x, y = network.features(stream.samples.gather(rows)).detach().double().numpy(), stream.samples.targets[rows].numpy()
    theirs = GaussianNB(priors=np.full(10, 0.1), var_smoothing=0.02 / x.var(0).max()).fit(x, y)
    ours = network.head.memory(torch.tensor(x))
    np.testing.assert_allclose(ours.softmax(1), theirs.predict_proba(x), atol=1e-4)
    assert call("show", "own.yaml", *overrides[:2], "strategy.smoothing=0")[2].startswith(
        "error: strategy.smoothing: 0"
    )

    class Same(type(network.head.memory)):
        """As a subclass of a head is one."""

    network.head.memory.__class__ = Same
    save_model(lab / "model.pt", network, config, stream)
    assert torch.equal(load_model(lab / "model.pt").model.head.memory(torch.tensor(x)), ours)


def test_a_metric_of_the_page_stands_in_every_table(lab, call):
    """Where it is not entered it is shown as it was measured, and nobody says which way is better."""
    assert call("run", "own.yaml", "output_dir=out", "seeds=2")[0] == 0
    assert "worst experience" in call("run", "own.yaml", "output_dir=out", "seeds=2", "--resume")[1]
    one = next(lab.glob("out/*/results.json")).parent
    assert "worst experience" in call("run", "own.yaml", f"output_dir={one}", "--resume")[1]
    (lab / "study.yaml").write_text(STUDY)
    assert "worst experience" in cl_ovq.study("study.yaml", quiet=True).to_markdown()
    os.environ.pop(VARIABLE)
    here = json.loads(call("compare", "out", "out", "--json")[1])
    for arguments, verdict in ((), "not tested"), (("--import", "parts.py"), "no difference shown"):
        done = forked("compare", "out", "out", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["means"]["worst_experience"] == here["means"]["worst_experience"]
        (told,) = [one["verdict"] for one in found["differences"] if one["metric"] == "worst_experience"]
        assert told == verdict


def test_what_is_received_imports_nothing(lab, call):
    """A run of others is compared, and to be evaluated it needs to be told where its parts are."""
    assert call("run", "own.yaml", "output_dir=out")[0] == 0
    os.environ.pop(VARIABLE)
    (lab / "imported").unlink()
    read = forked("compare", "out", "out")
    assert read.returncode == 0, read.stderr
    refused = forked("evaluate", "out")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert "unknown" in refused.stderr
    assert (
        f"(it was made with --import {lab / 'parts.py'}; from Python: cl_ovq.import_parts, or CL_OVQ_IMPORTS)"
        in refused.stderr
    )
    assert not (lab / "imported").exists()
    (lab / "study.yaml").write_text(STUDY)
    refused = forked("study", "study.yaml")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert f"add --import {lab / 'parts.py'}" in refused.stderr
    assert not (lab / "imported").exists()
    found = forked("evaluate", "out", "--json", "--import", "parts.py")
    assert found.returncode == 0, found.stderr


def test_processes_of_a_study_and_a_logged_model_inherit_them(lab, store):
    (lab / "study.yaml").write_text(STUDY)
    done = forked("study", "study.yaml", "--jobs", "2", "--import", "parts.py", "--directory", "study", "--json")
    assert done.returncode == 0, done.stderr
    tracked = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=own parts", "output_dir=out")
    result = cl_ovq.run("own.yaml", [*tracked], quiet=True)
    run = mlflow.MlflowClient(tracking_uri=store).get_run(result.run_id)
    (logged,) = run.outputs.model_outputs
    code = (
        f"import mlflow, numpy; mlflow.set_tracking_uri({store!r}); "
        f"model = mlflow.pyfunc.load_model('models:/{logged.model_id}'); "
        "print(model.predict(numpy.zeros((3, 1, 8, 8), 'float32')).shape)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # it inherits the variable
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.endswith("(3, 10)\n")


BLOBS = """
import torch
from avalanche.benchmarks import nc_benchmark
from torch.utils.data import TensorDataset
from cl_ovq import Stream
from cl_ovq.options import NoOptions
from streams import STREAMS, StreamEntry

def build(options, *, seed):
    def part(count):
        data = TensorDataset(torch.rand(count, 1, 8, 8), torch.arange(count) % 4)
        data.targets = data.tensors[1].tolist()
        return data
    return Stream.from_avalanche(nc_benchmark(part(40), part(20), n_experiences=2, task_labels=False))

STREAMS["blobs"] = StreamEntry(build, NoOptions, "noise")
"""


def test_a_model_of_an_avalanche_benchmark_of_ones_own_is_registered(lab, store):
    (lab / "blobs.py").write_text(BLOBS)
    cl_ovq.import_parts(["./blobs.py"])
    overrides = ["strategy.name=naive", "model.name=mlp", "tracking.enabled=true", f"tracking.uri={store}"]
    config = {"stream": {"name": "blobs"}, "figures": False, "output_dir": "out"}
    run = mlflow.MlflowClient(tracking_uri=store).get_run(cl_ovq.run(config, overrides, quiet=True).run_id)
    assert len(run.outputs.model_outputs) == 1
    assert as_options() == ["--import", str(lab / "blobs.py")]  # of a command that trains it again


@pytest.mark.slow
def test_ray_workers_inherit_them(lab):
    (lab / "sweep.yaml").write_text("""
title: Own
experiment: own.yaml
set: {tracking.enabled: false}
space: {strategy.factor: {choice: [0.5, 0.9]}}
search: {name: grid}
cluster: {cpus: 2}
selection: {test_seeds: 1}
""")
    done = elsewhere("sweep", "sweep.yaml", "--import", "parts.py", "--directory", "sweep", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["done"] == 2


OPTION = """
from dataclasses import dataclass
from pathlib import Path
from cl_ovq.options import option
@dataclass
class O:
    x: """
STRATEGY = "from cl_ovq.strategies import STRATEGIES\n@STRATEGIES.enter"
BUILD = "\ndef build(options, context):\n    return context.naive()\n"
METRIC = "from cl_ovq.metric_names import MATRIX_METRICS\nMATRIX_METRICS.enter"
STREAM = "from streams import STREAMS, StreamEntry\nclass O:\n    pass\nSTREAMS"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"{STRATEGY}('der', 'mine'){BUILD}",
            "ValueError: there is a strategy 'der' already: register yours under another",
        ),
        (
            f"{STREAM}['recall'] = STREAMS['text']",
            "ValueError: there is a stream 'recall' already: register yours",
        ),
        (f"{STREAM}['mine'] = 3", "TypeError: stream 'mine': a int is not a StreamEntry"),
        (f"{STREAM}['mine'] = StreamEntry(None, O, '')", "TypeError: stream 'mine': its options are not a dataclass"),
        (
            f"{METRIC}('accuracy', '')(lambda matrix: 42)",
            "ValueError: there is a metric 'accuracy' already: register yours under another name",
        ),
        (
            f"{OPTION}float\n{STRATEGY}('mine', '', options=O){BUILD}",
            "TypeError: options: O.x has no default: write x = ",
        ),
        (
            f"{OPTION}Path = Path()\n{STRATEGY}('mine', '', options=O){BUILD}",
            "TypeError: options: O.x is of type Path, ",
        ),
        (
            f"{OPTION}list[tuple[int]] = option([], '')\n{STRATEGY}('mine', '', options=O){BUILD}",
            "TypeError: options: O.x is of type tuple, which configurations do not support: use int, float, bool, "
            "str, Any, ",
        ),
        (
            f"{STRATEGY}('mine', '', options=int){BUILD}",
            "TypeError: options: int is not a dataclass: write @dataclass above",
        ),
        (f"{STRATEGY}('mine', '', sections={{'own': int}}){BUILD}", "TypeError: options: int is not a dataclass"),
        (
            f"{OPTION}int = 3\n{STRATEGY}('mine', '', sections={{'own': O}}){BUILD}",
            "ValueError: sections: a configuration has no section 'own' that a part may open: known: dictionary, ",
        ),
    ],
)
def test_a_part_that_cannot_be_one_is_refused_where_it_is_entered(lab, call, text, line):
    (lab / "odd.py").write_text(text)
    code, out, error = call("show", "own.yaml", "--import", "odd.py")
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    assert error.startswith(f"error: imports: odd.py: {line}")


@pytest.mark.parametrize(
    ("text", "overrides", "line"),
    [
        (
            f"{OPTION.replace('x:', 'epochs:')}str = 'a'\n{STRATEGY}('mine', '', options=O){BUILD}",
            ("strategy.name=mine",),
            "strategy.epochs: another part used with it has a different 'epochs': rename one of them",
        ),
        (
            "from cl_ovq.models import MODELS\nMODELS.enter('mine', '')(lambda options, context: None)",
            ("model.name=mine",),
            "model.name: 'mine' is built as a NoneType, but must be a torch.nn.Module",
        ),
        (
            "from torch import nn\nfrom cl_ovq.models import MODELS\n"
            "MODELS.enter('mine', '')(lambda options, context: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))",
            ("model.name=mine",),
            "model: Sequential maps 2 samples of 'split_digits' to [2, 7], but must map them to [2, 10]",
        ),
        (
            "from torch import nn\nfrom cl_ovq.models import MODELS\n"
            "MODELS.enter('mine', '')(lambda options, context: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))",
            ("model.name=mine", "model.head=memory"),
            "model: Sequential has no last layer `head` that is an nn.Linear, which model.head=memory needs",
        ),
        (
            "from cl_ovq.mixers import MIXERS\nMIXERS.enter('mine', '')(lambda options: None)",
            ("model.mixer=mine",),
            "mixer 'mine' is built as a NoneType, but must be a cl_ovq.mixers.Mixer",
        ),
        (
            f"{OPTION}int = 3\nfrom streams import STREAMS, StreamEntry\n"
            "STREAMS['mine'] = StreamEntry(lambda options, *, seed: None, O, '')",
            ("stream.name=mine",),
            "stream: 'mine' is built as a NoneType, but must be a Stream",
        ),
        (f"{METRIC}('mine', '')(lambda matrix: 1 / 0)", (), "metric 'mine': ZeroDivisionError: division by zero"),
        (
            f"{METRIC}('mine', '')(lambda matrix: 1e999)",
            (),
            "metric 'mine' is inf: it must be a finite number, or NaN where it is undefined",
        ),
    ],
)
def test_a_part_that_builds_something_else_is_told_so(lab, call, text, overrides, line):
    (lab / "odd.py").write_text(text)
    (lab / "plain.yaml").write_text("stream: {name: split_digits}\ntracking: {enabled: false}\n")
    if "stream.name=mine" not in overrides:
        overrides = ("stream.experiences=2", "strategy.batch_size=500", *overrides)
    code, out, error = call("run", "plain.yaml", "figures=false", *overrides, "--import", "odd.py")
    assert (code, out) == (2, ""), error
    assert error.splitlines()[-1].startswith(f"error: {line}")


def test_an_option_without_a_meaning_is_listed(lab, call):
    (lab / "short.py").write_text(f"{OPTION}int = 3\n{STRATEGY}('mine', '', options=O){BUILD}")
    code, out, error = call("list", "strategies", "mine", "--import", "short.py")
    assert code == 0, error
    assert "default 3" in out


def test_a_package_with_an_entry_point(lab, monkeypatch):
    package = lab / "site" / "my_lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text((lab / "parts.py").read_text())
    about = lab / "site" / "my_lab-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cl_ovq.parts]\nmy_lab = my_lab.parts\n")
    path = os.pathsep.join([str(lab / "site"), os.environ.get("PYTHONPATH", str(Path(cl_ovq.__file__).parents[1]))])
    listed = elsewhere("list", "strategies", PYTHONPATH=path)
    assert listed.returncode == 0, listed.stderr
    assert "shrink" in listed.stdout
    assert "shrink" not in forked("list", "strategies").stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("show", "own.yaml", "--import", "nowhere.py"), "imports: there is no file "),
        (("show", "own.yaml", "--import", "my_lab_of_nobody"), "imports: my_lab_of_nobody: ModuleNotFoundError: "),
        (("show", "own.yaml", "--import", "broken.py"), "imports: broken.py: NameError: name 'nothing' is not defin"),
        (("show", "own.yaml", "--import", "./wrong.yaml"), "imports: "),
        (("show", "own.yaml", "--import", ".."), "imports: '..' is neither a module name (my_lab.parts) nor a "),
        (("show", "own.yaml", "--import", ""), "imports: '' is neither a module name (my_lab.parts) nor a file"),
        (("show", "own.yaml", "--import", "leaves.py"), "imports: leaves.py: SystemExit: 0"),
        (
            ("show", "own.yaml", "imports=[./parts.py]"),
            "imports: overrides are applied too late for imports",
        ),
        (("show", "wrong.yaml"), "imports: 3 is not a list"),
        (("show", "includes.yaml"), "imports: "),
    ],
)
def test_mistakes(lab, call, arguments, line):
    (lab / "broken.py").write_text("nothing\n")
    (lab / "leaves.py").write_text("import sys\n\nsys.exit(0)\n")
    (lab / "wrong.yaml").write_text((lab / "own.yaml").read_text().replace("[./parts.py]", "3"))
    (lab / "includes.yaml").write_text("include: own.yaml\n")
    code, out, error = call(*arguments)
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    assert error.startswith(f"error: {line}")
