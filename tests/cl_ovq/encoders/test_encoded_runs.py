"""A frozen encoder in whole runs: streams, resuming, evaluating, and the model that reads images."""

from __future__ import annotations

import io
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from encoder_helpers import Killed, by_hand, killed_at_the_first_checkpoint
from mlflow import MlflowClient
from rich.console import Console

import cl_ovq
from cl_ovq.config import load_config
from cl_ovq.config.identity import identity
from cl_ovq.config.load import to_dict
from cl_ovq.encoders.stream import EncodedStream
from cl_ovq.errors import UserError
from cl_ovq.imports import import_parts
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from streams import rows_of

QUIET = Console(file=io.StringIO())
RIDGE = ("model.name=pixels", "strategy.name=ridge", "strategy.strength=1")


@pytest.fixture
def config(files, tmp_path):
    """`config(*overrides, output=NAME)`: ridge regression on the features of digits in two experiences."""
    code, weights = files
    path = tmp_path / "own.yaml"
    path.write_text(
        "stream: {name: split_digits, experiences: 2}\n"
        f"encoder: {{name: file, model: '{code}:Small', weights: '{weights}', layer: second}}\n"
        "model: {name: pixels}\nstrategy: {name: ridge, strength: 1}\nfigures: false\ntracking: {enabled: false}\n"
    )

    def config(*overrides, output="run"):
        return load_config(path, [f"output_dir={tmp_path / output}", *overrides])

    return config


def test_features_are_those_of_the_encoder_called_by_hand(config, files):
    stream = load_stream(config("encoder.layer=null", "encoder.batch_size=7"))
    assert isinstance(stream, EncodedStream)
    images = stream.raw.samples.gather(torch.arange(len(stream.raw.samples)))
    network_without_head = by_hand(files[1], images)
    weights = torch.load(files[1], weights_only=True)
    assert stream.samples.sample_shape == (12,)
    found = stream.samples.gather(torch.arange(len(stream.samples)))
    # The network's output is a map, whose mean is taken; its own `fc` is never called.
    assert torch.allclose(found, network_without_head, rtol=1e-4, atol=1e-4)
    assert "fc.weight" in weights


@pytest.mark.parametrize(
    "overrides",
    [
        ("stream.blur=0.5",),
        ("stream.scenario=domain_incremental", "seed=3"),
        ("stream.scenario=task_incremental",),
        ("stream.name=permuted_digits",),
        ("stream.name=rotated_digits", "stream.scenario=task_incremental"),
        ("stream.validation_fraction=0",),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_the_stream_is_the_same_but_for_its_samples(config, files, overrides):
    stream = load_stream(config(*overrides, "encoder.layer=null"))
    raw = stream.raw
    assert list(stream.benchmark.streams) == list(raw.benchmark.streams)
    for name, experiences in raw.benchmark.streams.items():
        for ours, theirs in zip(stream.benchmark.streams[name], experiences, strict=True):
            assert torch.equal(rows_of(ours.dataset), rows_of(theirs.dataset))
            assert list(ours.dataset.targets) == list(theirs.dataset.targets)
            assert list(ours.dataset.targets_task_labels) == list(theirs.dataset.targets_task_labels)
            assert ours.classes_in_this_experience == theirs.classes_in_this_experience
    assert torch.equal(stream.samples.targets, raw.samples.targets)
    rows = torch.tensor([0, len(raw.samples) // 2, len(raw.samples) - 1])
    assert torch.allclose(stream.samples.gather(rows), by_hand(files[1], raw.samples.gather(rows)), atol=1e-4)
    assert stream.provenance["split_sha256"] == raw.provenance["split_sha256"]
    assert stream.provenance["vector_shape"] == [12]


def test_a_second_run_does_not_touch_the_encoder(config, files, tmp_path):
    first = run_experiment(config(output="first"), QUIET)
    weights = files[1]
    weights.unlink()
    (tmp_path / "poison").touch()
    second = run_experiment(config("seed=0", output="second"), QUIET)
    assert second.matrix == first.matrix
    assert second.provenance["data"] == first.provenance["data"]
    other = run_experiment(config("seed=1", "strategy.name=ncm", output="third"), QUIET)
    assert other.provenance["data"]["encoder"] == first.provenance["data"]["encoder"]
    with pytest.raises(UserError, match=r"there is no file .*small\.pth"):
        run_experiment(config("encoder.layer=first", output="fourth"), QUIET)


def test_what_decides_features_gives_others(config, files):
    def digest(*overrides):
        return load_stream(config(*overrides)).provenance["encoder"]["digest"]

    first = digest()
    assert digest("encoder.batch_size=5") == first
    assert digest("stream.experiences=5", "seed=4") == first
    others = {digest("encoder.layer=first"), digest("encoder.pool=flatten"), digest("encoder.precision=bfloat16")}
    others |= {digest("encoder.size=10"), digest("stream.name=rotated_digits")}
    state = torch.load(files[1], weights_only=True)
    state["first.0.bias"] += 1
    torch.save(state, files[1])
    others.add(digest())
    assert len(others - {first}) == 6
    permuted = [digest("stream.name=permuted_digits", f"seed={seed}") for seed in (0, 1, 0)]
    assert permuted[0] == permuted[2] != permuted[1]


def test_half_precision_is_kept_in_half_the_bytes(config):
    whole, half = load_stream(config()), load_stream(config("encoder.precision=bfloat16"))
    assert half.samples.sample_bytes * 2 == whole.samples.sample_bytes
    rows = torch.arange(50)
    assert torch.allclose(half.samples.gather(rows), whole.samples.gather(rows), rtol=0.05, atol=0.05)


def test_without_a_cache_nothing_is_written(config, tmp_path):
    kept, computed = load_stream(config()), load_stream(config("encoder.cache=false"))
    assert torch.equal(kept.samples.gather(torch.arange(9)), computed.samples.gather(torch.arange(9)))
    assert (tmp_path / "cache" / "cl-ovq" / "features").is_dir()
    load_stream(config("encoder.cache=false", "encoder.layer=first"))
    assert len(list((tmp_path / "cache" / "cl-ovq" / "features").glob("*/features"))) == 1
    load_stream(config(f"encoder.cache_dir={tmp_path / 'elsewhere'}"))
    assert len(list((tmp_path / "elsewhere").glob("*/features"))) == 1


def test_a_run_goes_on_where_it_was_killed(config, tmp_path):
    whole = run_experiment(config(output="whole"), QUIET)

    with killed_at_the_first_checkpoint(), pytest.raises(Killed):
        run_experiment(config(output="cut"), QUIET)
    resumed = run_experiment(config(output="cut"), QUIET, resume=True)
    assert resumed.matrix == whole.matrix
    assert resumed.provenance["data"] == whole.provenance["data"]


def test_a_run_does_not_go_on_with_other_weights(config, files):
    run_experiment(config(), QUIET)
    state = torch.load(files[1], weights_only=True)
    state["first.0.bias"] += 1
    torch.save(state, files[1])
    with pytest.raises(
        UserError, match=r"a different configuration: encoder\.sha256 is [0-9a-f]{64} in the checkpoint"
    ):
        run_experiment(config(), QUIET, resume=True)
    with pytest.raises(UserError, match=r"encoder\.weights: they differ from the run's weights"):
        evaluate_finished(str(config().output_dir))


def test_what_decides_a_run(config):
    def deciding(*overrides):
        return identity(to_dict(config(*overrides))).training

    first = deciding()
    assert deciding("encoder.batch_size=5", "encoder.cache=false", "encoder.cache_dir=x") == first
    assert deciding("encoder.layer=first") != first
    assert first["encoder.sha256"] is not None


def test_evaluated_again_on_its_own_stream_and_another(config, tmp_path):
    result = run_experiment(config(), QUIET)
    found = evaluate_finished(str(tmp_path / "run"))
    assert found.values["accuracy"] == pytest.approx(result.matrix[-1])
    other = evaluate_finished(str(tmp_path / "run"), ["stream.scenario=domain_incremental", "stream.experiences=5"])
    assert len(other.values["accuracy"]) == 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trained_model_reads_images(config, tmp_path, precision):
    result = run_experiment(config(f"encoder.precision={precision}"), QUIET)
    stream = load_stream(config(f"encoder.precision={precision}"))
    model = cl_ovq.load(tmp_path / "run").model()
    rows = rows_of(stream.benchmark.streams["test"][1].dataset)
    images, targets = stream.raw.samples.gather(rows), stream.samples.targets[rows]
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == targets).float().mean())
    assert accuracy == pytest.approx(result.matrix[-1][1])
    given = []
    hook = model.model.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model(images[:32])
    hook.remove()
    kept = stream.samples.gather(rows[:32])  # features of half precision are rounded as those that were kept
    assert torch.allclose(given[0], kept, rtol=1e-3 if precision == "bfloat16" else 1e-5, atol=1e-5)
    if precision == "bfloat16":
        assert torch.equal(given[0].half().float(), given[0])
    assert not model.train().encoder.training


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_mlflow_answers_from_images(config, files, store, tmp_path, monkeypatch, scenario):
    monkeypatch.chdir(tmp_path)
    overrides = ("encoder.precision=bfloat16", f"stream.scenario={scenario}")
    tracked = ("tracking.enabled=true", f"tracking.uri={store}")
    result = run_experiment(config(*overrides, *tracked), QUIET)
    stream = load_stream(config(*overrides))
    expected = cl_ovq.load(tmp_path / "run").model()
    files[1].unlink()  # what was logged needs no weights from elsewhere
    (logged,) = MlflowClient(tracking_uri=store).get_run(result.run_id).outputs.model_outputs
    mlflow.set_tracking_uri(store)
    loaded = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    images, labels = stream.raw.samples.gather(torch.arange(20)), torch.arange(20) % 2
    task = scenario == "task_incremental"
    with torch.no_grad():
        wanted = expected(images, labels) if task else expected(images)
    given = {"images": images.numpy(), "task_labels": labels.numpy()} if task else images.numpy()
    assert np.array_equal(loaded.predict(given), wanted.numpy())
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)


def test_every_kind_of_model_and_strategy_learns_from_features(config):
    kinds = (
        ("model.head=memory", "memory.capacity=60", "strategy.name=naive"),
        ("model.name=mlp", "strategy.name=joint", "strategy.epochs=6", "encoder.pool=flatten"),
        ("model.name=random_features", "strategy.name=slda"),
    )
    for number, overrides in enumerate(kinds):
        result = run_experiment(config(*overrides, output=f"run{number}"), QUIET)
        assert result.metrics["accuracy"] > 0.4
        assert result.run_name.startswith("Small")


def test_a_mistake_is_one_line(config, files, tmp_path, monkeypatch):
    def refused(*overrides):
        with pytest.raises(UserError) as error:
            run_experiment(config(*overrides, output="refused"), QUIET)
        assert not (tmp_path / "refused").exists()
        return str(error.value)

    np.savez(tmp_path / "x.npz", x=np.zeros((80, 5)), y=np.arange(80) % 4)
    line = refused("stream.name=features", f"stream.data={tmp_path / 'x.npz'}")
    assert "encoder.name: 'file' reads images, but 'features' has vectors" in line
    line = refused("stream.name=recall", "model.name=sequence_model", "strategy.name=naive")
    assert "encoder.name: 'file' reads images, but 'recall' has sequences" in line
    line = refused("model.name=patch_transformer")
    assert (
        "model.name: 'patch_transformer' reads images, but an encoder outputs features: use model.name=pixels" in line
    )
    assert "did you mean 'torchvision'?" in refused("encoder.name=torchvison", "encoder.layer=null")
    assert "has no 'Smal': did you mean 'Small'?" in refused(f"encoder.model={files[0]}:Smal")
    assert "returns a int, not a torch.nn.Module" in refused(f"encoder.model={files[0]}:number")
    assert "is not an import path" in refused("encoder.model=Small")
    assert "encoder.std: has 1 numbers, but encoder.mean has 0" in refused("encoder.std=[1]")
    monkeypatch.setenv("CL_OVQ_IMPORTS", "")
    assert "is not imported, and importing runs code: add --import" in refused()


def test_features_that_are_no_numbers_are_refused(config, files):
    state = torch.load(files[1], weights_only=True)
    state["second.weight"] *= 1e30
    torch.save(state, files[1])
    with pytest.raises(UserError, match=r"non-finite features for sample 0: use encoder\.precision=float32"):
        load_stream(config("encoder.precision=float16"))


def test_an_encoder_of_the_documentation(files, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "parts.py").write_text(block)
    import_parts([str(tmp_path / "parts.py")])
    chosen = [
        *("encoder.name=wide", "encoder.width=4", "encoder.weights=random", "encoder.size=16"),
        *("stream.experiences=2", "evaluation.stop_after=1", *RIDGE, f"output_dir={tmp_path / 'run'}"),
        *("tracking.enabled=false", "figures=false", "model.head=linear"),
    ]
    result = run_experiment(load_config("encoder_digits", chosen), QUIET)
    assert result.metrics["accuracy"] > 0.4
    assert result.provenance["data"]["vector_shape"] == [2048]
    assert result.provenance["data"]["encoder"]["width"] == 4
