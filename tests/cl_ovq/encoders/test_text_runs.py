"""Streams of texts in whole runs: features once, resuming, evaluating, and the model that reads strings."""

from __future__ import annotations

import io
import json
import random

import mlflow
import numpy as np
import pytest
import torch
from encoder_helpers import Killed, killed_at_the_first_checkpoint
from mlflow import MlflowClient
from rich.console import Console
from text_helpers import WORDS, save_bert

import cl_ovq
from cl_ovq.config import load_config
from cl_ovq.encoders.stream import EncodedStream
from cl_ovq.errors import UserError
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from streams import rows_of

QUIET = Console(file=io.StringIO())
N = 240
FEATURES = "encoder.features=128"
PARTS = (FEATURES, "strategy.strength=1")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A file of sentences: of four classes, each of which has words of its own, in two domains."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = random.Random(0)
    lines = []
    for row in range(N):
        own = WORDS[row % 4 * 5 : row % 4 * 5 + 5]
        words = [draw.choice(own if draw.random() < 0.8 else WORDS) for _ in range(draw.randint(3, 12))]
        domain = ("speech", "letters")[row // 4 % 2]
        lines.append(json.dumps({"sentence": " ".join(words), "target": "abcd"[row % 4], "domain": domain}))
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    return tmp_path / "x.jsonl"


@pytest.fixture
def config(table, tmp_path):
    """`config(*overrides, output=NAME)`: the experiment that is shipped, in two experiences."""

    def config(*overrides, output="run", parts=PARTS):
        own = (f"stream.data={table}", "stream.experiences=2", "figures=false", "tracking.enabled=false")
        return load_config("text_classification", [*own, f"output_dir={tmp_path / output}", *parts, *overrides])

    return config


def test_features_are_those_of_the_texts(config, tmp_path):
    stream = load_stream(config("encoder.batch_size=7"))
    assert isinstance(stream, EncodedStream)
    rows = torch.arange(N)
    expected = stream.encoder.network()(stream.raw.samples.texts(rows))
    assert torch.equal(stream.samples.gather(rows), expected)
    assert stream.provenance["vector_shape"] == [128]
    assert len(list((tmp_path / "cache" / "cl-ovq" / "features").glob("*/features"))) == 1
    other = load_stream(config("seed=5", "stream.experiences=4", "encoder.cache=false"))
    assert other.provenance["encoder"] == stream.provenance["encoder"]
    wider = load_stream(config("encoder.character_ngrams=3")).provenance["encoder"]
    assert wider["digest"] != stream.provenance["encoder"]["digest"]


@pytest.mark.parametrize("scenario", ["class_incremental", "domain_incremental", "task_incremental"])
def test_mlflow_and_python_answer_from_strings(config, store, tmp_path, monkeypatch, scenario):
    monkeypatch.chdir(tmp_path)
    overrides = (f"stream.scenario={scenario}",)
    result = run_experiment(config(*overrides, "tracking.enabled=true", f"tracking.uri={store}"), QUIET)
    assert result.metrics["accuracy"] > 0.7
    stream = load_stream(config(*overrides))
    model = cl_ovq.load(tmp_path / "run").model()
    rows = rows_of(stream.benchmark.streams["test"][1].dataset)
    texts, targets = stream.raw.samples.texts(rows), stream.samples.targets[rows]
    labels = torch.ones(len(rows), dtype=torch.int64)
    with torch.no_grad():
        wanted = model(texts, labels) if scenario == "task_incremental" else model(texts)
    assert float((wanted.argmax(1) == targets).float().mean()) == pytest.approx(result.matrix[-1][1])
    (logged,) = MlflowClient(tracking_uri=store).get_run(result.run_id).outputs.model_outputs
    mlflow.set_tracking_uri(store)
    loaded = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    if scenario == "task_incremental":
        found = loaded.predict({"texts": np.array(texts), "task_labels": labels.numpy()})
    else:
        found = loaded.predict(np.array(texts))
    assert np.array_equal(found, wanted.numpy())


def test_a_run_goes_on_where_it_was_killed_and_is_evaluated_again(config, tmp_path):
    whole = run_experiment(config(output="whole"), QUIET)
    with killed_at_the_first_checkpoint(), pytest.raises(Killed):
        run_experiment(config(output="cut"), QUIET)
    resumed = run_experiment(config(output="cut"), QUIET, resume=True)
    assert resumed.matrix == whole.matrix
    assert resumed.provenance["data"] == whole.provenance["data"]
    found = evaluate_finished(str(tmp_path / "cut"))
    assert found.values["accuracy"] == pytest.approx(whole.matrix[-1])
    other = evaluate_finished(str(tmp_path / "cut"), ["stream.scenario=domain_incremental"])
    assert len(other.values["accuracy"]) == 2


def test_a_text_model_in_a_run(config, tmp_path):
    pytest.importorskip("transformers")
    save_bert(tmp_path / "bert")
    layers = (f"encoder.name=huggingface_text encoder.weights={tmp_path / 'bert'} encoder.max_length=8").split()
    path = tmp_path / "bert.yaml"
    path.write_text(
        f"stream: {{name: text_classification, data: '{tmp_path / 'x.jsonl'}', experiences: 2}}\n"
        "model: {name: mlp}\nstrategy: {name: joint, epochs: 30}\nfigures: false\ntracking: {enabled: false}\n"
    )
    result = run_experiment(load_config(path, [*layers, f"output_dir={tmp_path / 'first'}"]), QUIET)
    encoder = result.provenance["data"]["encoder"]
    texts = [json.loads(line)["sentence"].split() for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert encoder["max_tokens"] == 8
    assert encoder["truncated"] == sum(len(words) + 2 > 8 for words in texts)
    assert encoder["weights"] == "bert"
    assert result.metrics["accuracy"] > 0.5
    (tmp_path / "bert" / "model.safetensors").unlink()  # its features were kept
    again = run_experiment(load_config(path, [*layers, f"output_dir={tmp_path / 'second'}"]), QUIET)
    assert again.matrix == result.matrix
    assert again.provenance["data"] == result.provenance["data"]
    with pytest.raises(UserError, match=r"has no \.safetensors weights"):
        run_experiment(load_config(path, [*layers, "encoder.pool=first", f"output_dir={tmp_path / 'x'}"]), QUIET)


def test_other_heads_and_strategies_learn_from_texts(config):
    kinds = (
        ("model.head=memory", "memory.capacity=40", "strategy.name=naive"),
        ("strategy.name=slda",),
        ("model.name=mlp", "strategy.name=replay", "strategy.buffer_size=80", "strategy.epochs=40"),
    )
    for number, overrides in enumerate(kinds):
        result = run_experiment(config(*overrides, output=f"run{number}", parts=(FEATURES,)), QUIET)
        assert result.metrics["accuracy"] > 0.5


def test_what_a_stream_of_texts_looks_like(table, call):
    code, out, err = call("show-stream", "text_classification", f"data={table}", "scenario=domain_incremental")
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    first = json.loads(table.read_text().splitlines()[4])
    assert "experience 1, training texts:" in told
    assert f"texts of {min(map(_size, table.read_text().splitlines()))} to " in told
    assert first["domain"] == "letters"
    shown = [f"{row['target']}: {row['sentence']}" for row in map(json.loads, table.read_text().splitlines())]
    assert sum(line in told for line in set(shown)) >= 8  # one of each class in each domain


def _size(line):
    return len(json.loads(line)["sentence"])


def test_a_mistake_is_one_line(config, tmp_path):
    def refused(*overrides):
        with pytest.raises(UserError) as error:
            run_experiment(config(*overrides, output="refused", parts=()), QUIET)
        assert not (tmp_path / "refused").exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    known = "known: hashed_ngrams, huggingface_text"
    assert f"'text_classification' has texts, which need an encoder: {known}" in refused("encoder.name=none")
    line = refused("encoder.name=torchvision", "encoder.weights=random")
    assert f"encoder.name: 'torchvision' reads images, but 'text_classification' has texts: {known}" in line
    line = refused("encoder.name=hashed_ngrams", "stream.name=split_digits", "stream.data=null")
    assert "'hashed_ngrams' reads texts, but 'split_digits' has images: known: efficientnet_lite0, torchvision" in line
    line = refused("stream.name=recall", "stream.data=null", "model.name=sequence_model", "strategy.name=naive")
    assert "encoder.name: 'hashed_ngrams' reads texts, but 'recall' has sequences" in line
    assert "model.name: 'patch_transformer' reads images" in refused("model.name=patch_transformer")
    assert "stream: inputs: " in refused("stream.inputs=txt")
    assert "did you mean 'hashed_ngrams'?" in refused("encoder.name=hashed_ngram")
    assert "encoder.train_from: 'hashed_ngrams' does not use it" in refused("encoder.train_from=all")
