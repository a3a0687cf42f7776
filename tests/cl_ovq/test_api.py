"""The platform from Python: the same runs as the command line's, with models and streams that are objects."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from quick_settings import QUICK
from torch import nn
from torch.utils.data import TensorDataset

import cl_ovq
from cl_ovq.config import load_config
from cl_ovq.config.load import read_experiment
from cl_ovq.config.parts import owners
from cl_ovq.runs.given import given
from cl_ovq.runs.result import Result
from cl_ovq.runs.setup import load_stream
from cl_ovq.tracking import open_client
from streams import STREAMS

PLAIN = {"strategy": {"name": "naive"}, "tracking": {"enabled": False}}


class Network(nn.Module):
    def __init__(self, stream, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, stream.n_classes)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture(scope="module")
def stream(tiny):
    return load_stream(tiny())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_importing_it_imports_nothing_heavy():
    code = "import sys, cl_ovq; print(sorted({'torch', 'avalanche', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)))"
    code += "; cl_ovq.run; print('pandas' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False False"]


def test_all_that_is_exported_is_there():
    assert all(getattr(cl_ovq, name) is not None for name in cl_ovq.__all__)
    assert set(cl_ovq.__all__) <= set(dir(cl_ovq))
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        cl_ovq.runn  # noqa: B018


@pytest.mark.parametrize("kind", ["path", "mapping", "configuration", "texts"])
def test_however_it_is_configured_it_is_the_run_of_the_command_line(run, tiny_path, tiny, kind):
    changes = {"seed": 3, "output_dir": Path("out")}
    texts = ["seed=3", "output_dir=out"]
    tree = read_experiment(tiny_path)
    config, overrides = {
        "path": (tiny_path, changes | {"seed": np.int64(3)}),
        "mapping": (tree | {"seed": 3}, {"output_dir": "out"}),
        "configuration": (tiny(), changes),
        "texts": (str(tiny_path), texts),
    }[kind]
    result = cl_ovq.run(config, overrides, quiet=True)
    expected = run("seed=3")
    assert (result.matrix, result.dictionary) == (expected.matrix, expected.dictionary)
    assert result.config == expected.config | {"output_dir": "out"}
    assert result == cl_ovq.load("out")


def test_the_caller_is_left_alone(tiny_path, capfd):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        result = cl_ovq.run(tiny_path, [*QUICK, "threads=1"], quiet=True)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert capfd.readouterr() == ("", "")
    cl_ovq.run(tiny_path, [*QUICK, f"output_dir={result.output_dir}"], overwrite=True)
    assert "experience 2/2" in capfd.readouterr().err


def test_what_a_result_shows(run):
    result = run("strategy.name=joint", "figures=true")
    matrix = result.to_numpy()
    assert matrix.shape == (3, 2)
    assert np.isnan(matrix[1]).all()
    assert matrix[2].tolist() == result.matrix[2]
    assert result.to_numpy("loss")[2].tolist() == result.matrices["loss"][2]
    with pytest.raises(cl_ovq.UserError, match="unknown matrix 'los': did you mean 'loss'"):
        result.to_numpy("los")
    frame = result.to_pandas()
    assert (len(frame), frame.index.tolist()) == (1, [result.run_name])
    assert frame["accuracy"].item() == result.metrics["accuracy"]
    assert np.isnan(frame["forgetting"].item())
    picture = result.figures["matrix"]._repr_mimebundle_()["image/png"]
    assert picture == Path(result.output_dir, "matrix.png").read_bytes()


@pytest.mark.parametrize(
    "settings", [(), ("strategy.name=slda", "model.name=mlp"), ("stream.scenario=task_incremental",)], ids=str
)
def test_the_trained_model_is_the_one_that_was_evaluated(run, tiny, settings):
    result = run(*settings)
    model, stream = result.model(), load_stream(tiny(*settings))
    assert not any(module.training for module in model.modules())
    for column, experience in enumerate(stream.benchmark.streams["test"]):
        rows = torch.tensor(list(experience.dataset.rows))
        tasks = (torch.full((len(rows),), column),) if "stream.scenario=task_incremental" in settings else ()
        with torch.no_grad():
            right = model(stream.samples.gather(rows), *tasks).argmax(1) == stream.samples.targets[rows]
        assert float(right.double().mean()) == pytest.approx(result.matrix[-1][column])


def test_seeds(tiny_path, stream):
    whole = cl_ovq.run(tiny_path, {"seeds": 2, "strategy.name": "naive"}, model=Network, quiet=True)
    assert [run.config["seed"] for run in whole.runs] == [0, 1]
    assert whole.runs[0].matrix[0] != whole.runs[1].matrix[0]  # each has weights of its own
    assert whole.to_pandas()["accuracy"].tolist() == [run.metrics["accuracy"] for run in whole.runs]
    with pytest.raises(
        cl_ovq.UserError, match="jobs: the model was passed as an object, which exists only in this process"
    ):
        cl_ovq.run(tiny_path, {"seeds": 2}, model=Network, jobs=2)
    with pytest.raises(cl_ovq.UserError, match="seeds: 2 runs need one model each"):
        cl_ovq.run(tiny_path, {"seeds": 2}, model=Network(stream))
    with pytest.raises(cl_ovq.UserError, match="runs with 2 seeds: choose one"):
        cl_ovq.load(Path(whole.runs[0].output_dir).parent)
    compared = cl_ovq.compare([whole, Path(whole.runs[1].output_dir).parent, whole.runs[0]])
    frame = compared.to_pandas()
    assert [len(group.runs) for group in compared.groups] == [2, 2, 1]
    accuracy = frame.loc["accuracy"]
    assert accuracy["mean"].tolist() == compared.means["accuracy"]
    assert accuracy["difference"].iloc[1] == 0
    assert pd.isna(accuracy["difference"].iloc[0])


# Models and streams that are objects


def test_a_model_of_ones_own_is_trained_like_any_other(tiny_path, tiny, run):
    """The perceptron of the platform, given as an object, learns what the configured one learns, bit for bit."""
    from cl_ovq.models.perceptron import Perceptron

    def perceptron(stream):
        return Perceptron(sample_shape=(1, 8, 8), n_classes=10, width=16, depth=2)

    for strategy in ("naive", "derpp", "slda", "gdumb"):
        ours = cl_ovq.run(tiny_path, {"strategy.name": strategy}, model=perceptron, quiet=True)
        theirs = run(f"strategy.name={strategy}", "model.name=mlp")
        assert (ours.matrix, ours.matrices) == (theirs.matrix, theirs.matrices), strategy
    assert ours.config["model"]["name"] == "custom"
    assert ours.config["model"]["source"].endswith("perceptron")
    assert ours.run_name == "perceptron gdumb seed 0"


def test_memory_head_and_dictionaries_of_ones_own_model(tiny_path):
    from cl_ovq.mixers import OVQAttention, dictionaries
    from cl_ovq.models import PatchTransformer
    from kernels import DictionaryOptions

    result = cl_ovq.run(
        tiny_path, {"model.head": "memory", "model.train_encoder": "never", "memory.capacity": 50}, model=Network
    )
    assert result.dictionary["scope"] == "shared"
    layer = OVQAttention(width=16, heads=2, options=DictionaryOptions(capacity=16, chunk_size=4), persistent=True)
    model = PatchTransformer(image_shape=(1, 8, 8), n_classes=10, patch_size=4, width=16, mixers=[layer])
    result = cl_ovq.run(tiny_path, {"dictionary.scope": "task"}, model=model, quiet=True)
    (dictionary,) = dictionaries(model).values()  # a module is trained where it is
    assert int(dictionary.writes) == result.provenance["train_steps"]
    assert result.dictionary["size"] == pytest.approx(float(dictionary.state.size.double().mean()))


def test_a_stream_of_ones_own_is_learned_like_any_other(stream, run, tiny):
    config = dataclasses.asdict(tiny()) | {"output_dir": "own"}
    for key in ("stream", "unresolved"):
        del config[key]
    result = cl_ovq.run(config, stream=stream, quiet=True)
    assert result.matrix == run().matrix
    assert result.config["stream"] == {
        "name": "custom",
        "source": "split_digits",
        "scenario": "class_incremental",
        "split_sha256": stream.provenance["split_sha256"],
    }
    evaluated = cl_ovq.evaluate(result, stream=stream)
    assert evaluated.own
    assert evaluated.values["accuracy"] == result.matrix[-1]
    assert cl_ovq.evaluate(run(), stream=stream).values["accuracy"] == result.matrix[-1]


@pytest.fixture
def own(stream):
    return cl_ovq.run({**PLAIN, "output_dir": "own"}, model=Network, stream=stream, quiet=True)


def test_a_run_that_was_cut_short_goes_on_with_the_same_objects(own, stream):
    from cl_ovq.runs.checkpoints.plugin import Checkpoints

    whole, save = own, Checkpoints.save

    def killed(self, *, within):
        save(self, within=within)
        raise KeyboardInterrupt

    settings = {**PLAIN, "output_dir": "killed"}
    with patch.object(Checkpoints, "save", killed), pytest.raises(KeyboardInterrupt):
        cl_ovq.run(settings, model=Network, stream=stream, quiet=True)
    assert "custom" not in STREAMS
    torch.manual_seed(17)
    result = cl_ovq.run(settings, model=Network(stream), stream=stream, resume=True, quiet=True)
    assert result.matrix == whole.matrix


def test_what_builds_it_again_needs_its_objects(own, stream, call):
    line = (
        "model: {}, passed from Python as an object, is not in a file: pass it again from Python, as "
        "cl_ovq.run(..., model=...)"
    )
    line = line.format(own.config["model"]["source"])
    for act in (own.model, lambda: cl_ovq.evaluate("own"), lambda: cl_ovq.evaluate("own", stream=stream)):
        with pytest.raises(cl_ovq.UserError) as refusal:
            act()
        assert str(refusal.value).startswith(line)
    with pytest.raises(cl_ovq.UserError, match=r"^stream: split_digits, passed from Python"):
        cl_ovq.evaluate("own", model=Network)
    for command in (("evaluate", "own"), ("run", "own/config.yaml", "--resume"), ("show", "own/config.yaml")):
        code, out, error = call(*command)
        assert (code, out) == (2, "")
        assert error.startswith(f"error: {line}")
        assert len(error.splitlines()) == 1
    network = Network(stream)
    before = network.head.weight.clone()
    evaluated = cl_ovq.evaluate(own, model=network, stream=stream)
    assert evaluated.values["accuracy"] == own.matrix[-1]
    assert torch.equal(network.head.weight, before)  # it was copied
    trained = own.model(Network, stream)
    rows = torch.tensor(list(stream.benchmark.streams["test"][1].dataset.rows))
    right = trained(stream.samples.gather(rows)).argmax(1) == stream.samples.targets[rows]
    assert float(right.double().mean()) == pytest.approx(own.matrix[-1][1])
    assert call("compare", "own", "own")[0] == 0


def test_another_stream_is_not_the_runs_own(own, stream):
    other = dataclasses.replace(stream, provenance=stream.provenance | {"split_sha256": "0" * 64})
    with pytest.raises(cl_ovq.UserError, match="has different data from that run's stream"):
        cl_ovq.evaluate(own, model=Network, stream=other)
    (Path(own.output_dir) / "results.json").unlink()
    with pytest.raises(cl_ovq.UserError, match=r"stream\.split_sha256 is .* in the checkpoint, but 0000"):
        cl_ovq.run({**PLAIN, "output_dir": "own"}, model=Network, stream=other, resume=True)


def test_mlflow_takes_such_a_run(stream, store, tmp_path):
    settings = {**PLAIN, "tracking": {"uri": store, "experiment": "own"}, "output_dir": "own"}
    result = cl_ovq.run(settings, model=Network, stream=stream, quiet=True)
    run = open_client(store).get_run(result.run_id)
    assert run.data.tags["model"] == "custom"
    assert run.data.params["model.source"] == result.config["model"]["source"]
    assert run.data.metrics["accuracy"] == pytest.approx(result.metrics["accuracy"])
    assert (tmp_path / "own" / "model.pt").exists()


class NoHead(nn.Module):
    def __init__(self, stream=None):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(x.flatten(1))


class IdleHead(NoHead):
    def __init__(self, stream=None):
        super().__init__()
        self.head = nn.Linear(64, 10)


class InPlace(NoHead):
    def forward(self, x):
        return super().forward(x.mul_(2))


class Fixed(NoHead):
    def __init__(self, stream=None):
        super().__init__()
        self.requires_grad_(False)
        self.head = nn.Linear(10, 10).requires_grad_(False)

    def forward(self, x):
        return self.head(super().forward(x))


class FixedHead(Fixed):
    def __init__(self, stream=None):
        super().__init__()
        self.last.requires_grad_(True)


MISTAKES = [
    ({}, {"model": 3}, "^model: 3 is neither a torch.nn.Module nor a function that returns one"),
    ({}, {"stream": 3}, "^stream: a int is not a stream: .*from_avalanche"),
    ({}, {"model": lambda stream: None}, "returns a NoneType, but must return a torch.nn.Module"),
    ({}, {"model": nn.Linear(3, 3)}, "^model: Linear does not take a batch of the stream 'split_digits': RuntimeError"),
    ({}, {"model": nn.Flatten()}, "^model: Flatten has no last layer `head`.* nothing is to be trained"),
    (
        {},
        {"model": lambda s: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))},
        r"\[2, 3\], but must map them to \[2, 10\]",
    ),
    ({"strategy.name": "slda"}, {"model": NoHead}, "NoHead has no last layer `head`.* strategy.name=slda needs"),
    ({"strategy.name": "ncm"}, {"model": IdleHead}, "IdleHead does not call its `head`.* strategy.name=ncm needs"),
    ({"model.head": "memory"}, {"model": NoHead}, "model.head=memory needs"),
    ({"model.head": "memory", "memory.calibrate": True}, {"model": IdleHead}, "no method `features`"),
    ({"model.train_encoder": "first_experience"}, {"model": NoHead}, "model.train_encoder=first_experience needs"),
    ({}, {"model": InPlace}, "^model: InPlace modifies its input batch in place"),
    ({}, {"model": Fixed}, "^model: Fixed has no parameter that requires a gradient, which strategy.name="),
    (
        {"model.train_encoder": "first_experience"},
        {"model": FixedHead},
        "^model: FixedHead has no parameter of its `head` that requires a gradient, .*=first_experience needs",
    ),
    ({"model.width": 3}, {"model": NoHead}, r"^model\.width: the model is passed as an object: only model\.head"),
    ({"dictionary.capacity": 3}, {"model": NoHead}, r"^dictionary\.capacity: the model is passed .* dictionary\.scope"),
    ({"model.source": "mine.Net"}, {}, r"^unknown key .model\.source."),
    ({"model.name": "custom"}, {}, "^model: passed from Python as an object"),
    ({"stream.name": "custom"}, {}, "^stream: .*passed from Python as an object"),
    ("model.width=3", {}, "is a string: pass a list of strings or a dictionary"),
    ({"model.mixer": "sofmax"}, {}, "did you mean 'softmax'"),
]


@pytest.mark.parametrize(("overrides", "objects", "line"), MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(tiny_path, tmp_path, overrides, objects, line):
    with pytest.raises(cl_ovq.UserError, match=line) as refusal:
        cl_ovq.run(tiny_path, overrides, **objects)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
    assert "custom" not in STREAMS


def test_a_sample_that_turns_out_wrong_in_training_is_a_mistake():
    def part(label, side):
        data = TensorDataset(torch.zeros(4, 1, side, side), torch.full((4,), label))
        return AvalancheDataset([data], data_attributes=[DataAttribute([label] * 4, "targets")])

    benchmark = benchmark_from_datasets(train=[part(0, 8), part(1, 9)], test=[part(0, 8), part(1, 8)])
    with pytest.raises(cl_ovq.UserError, match=r"^stream: sample . has shape \[1, 9, 9\]"):
        cl_ovq.run(PLAIN, model=Network, stream=cl_ovq.Stream.from_avalanche(benchmark))


def test_what_was_given_is_forgotten(stream):
    before = owners()
    with given(Network, stream):
        assert {owner.name for owner in owners()} - {owner.name for owner in before} == {"custom"}
    assert owners() == before


def test_what_a_mapping_says_of_a_given_stream_is_a_mistake(stream, tmp_path):
    with pytest.raises(cl_ovq.UserError, match=r"^stream\.name: the stream is passed as an object: remove it"):
        cl_ovq.run({**PLAIN, "stream": {"name": "split_digits"}}, stream=stream)
    bare = dataclasses.replace(stream, provenance={})
    with pytest.raises(cl_ovq.UserError, match=r"^stream: its provenance lacks dataset, source"):
        cl_ovq.run(PLAIN, stream=bare)


def test_an_object_that_would_not_be_used_is_a_mistake(run, stream):
    for act in (lambda: cl_ovq.evaluate(run(), model=Network), lambda: run().model(Network)):
        with pytest.raises(
            cl_ovq.UserError, match=r"^model: the run's configuration already has one, 'patch_transformer'"
        ):
            act()
    with pytest.raises(cl_ovq.UserError, match=r"^stream: the run's configuration already has one, 'split_digits'"):
        run().model(stream=stream)


def test_mistakes_in_what_is_compared():
    with pytest.raises(cl_ovq.UserError, match="compare needs a list of at least two runs"):
        cl_ovq.compare(["one"])
    with pytest.raises(cl_ovq.UserError, match="no file or directory 'nowhere'"):
        cl_ovq.load("nowhere")


def test_a_stored_configuration_is_read_as_it_stands(own):
    assert Result.read(Path("own")) == own
    assert json.loads(Path("own/results.json").read_text())["config"]["model"]["name"] == "custom"
    with pytest.raises(cl_ovq.UserError, match="passed from Python as an object"):
        load_config("own/config.yaml")
