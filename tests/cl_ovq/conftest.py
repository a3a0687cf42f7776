"""Tiny experiments on the real digits, and what several tests need to look at them."""

from __future__ import annotations

import functools
import io
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cl_ovq import cli
from cl_ovq.config import load_config
from cl_ovq.evaluation.logger import evaluator
from cl_ovq.models import MODELS, ResNet, build_model
from cl_ovq.runs.run import run_experiment, schedule
from cl_ovq.runs.setup import build_strategy, load_stream
from cl_ovq.tracking import open_client
from cl_ovq.training import seed_everything

sys.path.insert(0, str(Path(__file__).parent))  # for `quick_settings`: pytest imports test files by path

TINY = """# Two experiences of digits and a model of a few thousand weights: a second or two of training.
stream: {name: split_digits, experiences: 2}
model: {width: 16, depth: 2, heads: 2, patch_size: 4}
dictionary: {capacity: 24, chunk_size: 4}
strategy: {name: replay, epochs: 1, batch_size: 32, buffer_size: 20}
optimizer: {learning_rate: 1e-2}
figures: false
tracking: {enabled: false}
"""


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    """The file of the tiny experiment."""
    path = tmp_path_factory.mktemp("experiments") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_path):
    """`tiny(*overrides)`: the tiny experiment's configuration."""
    return lambda *overrides: load_config(tiny_path, overrides)


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """`run(*overrides)`: the result of the tiny experiment, run once for each set of overrides."""

    @functools.cache
    def run(*overrides):
        folder = tmp_path_factory.mktemp("run")
        with chdir(folder):
            return run_experiment(tiny(*overrides, f"output_dir={folder / 'result'}"), Console(file=io.StringIO()))

    return run


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """`call(*arguments)`: exit code, standard output and standard error of the command line, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cl-ovq", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


class Session:
    """A configured strategy on a stream, to be trained by hand."""

    def __init__(self, config, metrics=()):
        self.config = config
        self.stream = load_stream(config)
        seed_everything(config.seed, "model")
        self.model = build_model(config, self.stream)
        self.train = list(self.stream.benchmark.streams["train"])
        self.test = self.stream.benchmark.streams["test"]
        self.strategy = build_strategy(
            config, self.stream, self.model, torch.device("cpu"), evaluator=evaluator(*metrics)
        )

    def parts(self):
        """Return what `strategy.train` is given in turn."""
        return [data for _, data in schedule(self.config, self.train)]

    def learn(self, *plugins, last=()):
        """Train over the whole stream; plugins are asked before those of the platform, `last` after them."""
        self.strategy.plugins[:0] = plugins
        self.strategy.plugins[-1:-1] = last  # Avalanche's clock is the very last
        seed_everything(self.config.seed, "training")
        for part in self.parts():
            self.strategy.train(part, eval_streams=[])


@pytest.fixture(scope="session")
def session(tiny):
    """`session(*overrides, metrics=())`: the tiny experiment's strategy, model and stream, made anew."""
    return lambda *overrides, metrics=(): Session(tiny(*overrides), metrics)


@pytest.fixture(scope="module")
def small():
    """`model.name=small`: a residual network of a few hundred weights."""

    def build(options, context):
        channels, classes = context.image_shape[0], context.stream.n_classes
        return ResNet(channels=channels, n_classes=classes, widths=(4, 6), blocks=1, projected=True)

    with MODELS.lent("small", "a small residual network", build=build, reads="images"):
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """The URI of an empty MLflow store in a SQLite file; making one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/elsewhere/store.db"
    open_client(uri)
    return uri
