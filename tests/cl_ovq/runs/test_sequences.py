"""Whole runs on sequence streams: what the matrix holds, evaluation by length, and recall that is learned."""

import copy
import io
import json
import math
import re

import pytest
import torch
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.evaluation.length_generalization import evaluate_capacities, evaluate_lengths, lengths_figure
from cl_ovq.models.saving import load_model
from cl_ovq.report.runs import capacities_table, matrix_table, summary_table
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.result import undefined_metrics
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from cl_ovq.tracking.notes import run_note
from streams import IGNORED, rows_of

TINY = """# Two experiences of sequences and a model of a few thousand weights.
stream: {name: recall, experiences: 2, length: 16, pairs: 2, keys: 12, values: 12, train: 64, validation: 8, test: 16}
model: {name: sequence_model, width: 16, depth: 2, heads: 2, convolution: 3, pattern: [sliding_window, ovq], window: 4}
dictionary: {scope: sequence, capacity: 8, chunk_size: 4}
strategy: {name: replay, epochs: 1, batch_size: 16, buffer_size: 8}
tracking: {enabled: false}
"""
TEXT = "stream={name: text, domains: [source, headers], length: 32, limit: 40000, train: 32, validation: 4, test: 8}"
REGRESSION = "stream={name: regression, experiences: 2, examples: 3, questions: 2, train: 32, validation: 4, test: 8}"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sequences") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def run(path, tmp_path_factory):
    """`run(*overrides)`: the configuration and the result of a tiny run."""

    def run(*overrides):
        folder = tmp_path_factory.mktemp("run")
        config = load_config(path, [*overrides, f"output_dir={folder}"])
        return config, run_experiment(config, Console(file=io.StringIO()))

    return run


def swap(path, folder, stream):
    """The tiny experiment with another stream in place of its own."""
    lines = path.read_text().splitlines()
    lines[1] = stream.replace("stream=", "stream: ")
    other = folder / "other.yaml"
    other.write_text("\n".join(lines))
    return other


@pytest.mark.parametrize("scope", ["sequence", "task", "stream"])
def test_recall_fills_a_matrix_of_accuracies(run, scope):
    config, result = run(f"dictionary.scope={scope}", "evaluation.lengths=[16,64]", "evaluation.length_tokens=200")
    assert result.quantity == "accuracy"
    assert result.matrices.keys() == {"loss"}
    assert result.run_name.startswith(f"sliding_window+ovq-{scope} replay")
    assert result.provenance["replay_bytes"] == 8 * (16 * 4 + 16 * 8)
    assert (result.dictionary["scope"] == "sequence") == (scope == "sequence")
    assert result.dictionary["size"] > 0
    assert [record["tokens"] for record in result.lengths] == [16, 64]
    assert json.loads(result.to_json())["lengths"] == result.lengths
    assert (load_stream(config), result.artifacts["lengths"])[1] == "lengths.png"


def last_row(config, result, tmp_path):
    """Evaluate the trained model on every test sequence, one at a time: a mean per experience."""
    model, stream = load_model(tmp_path / "model.pt").model, load_stream(config)
    found = []
    for part in stream.benchmark.streams["test"]:
        values = []
        for row in rows_of(part.dataset).tolist():
            outputs, targets = model(stream.samples.gather(torch.tensor([row])))[0], stream.samples.targets[row]
            for output, target in zip(outputs.double(), targets.tolist(), strict=True):
                if stream.kind == "values":
                    if not math.isnan(target):
                        values.append(-((float(output) - target) ** 2))
                elif target != IGNORED and stream.kind == "tokens":
                    values.append(float(output.argmax() == target))
                elif target != IGNORED:
                    values.append(float(output.log_softmax(-1)[target]) / math.log(2))
        found.append(sum(values) / len(values))
    return found


@pytest.mark.parametrize("stream", [None, TEXT, REGRESSION], ids=["recall", "text", "regression"])
def test_the_matrix_is_that_of_a_plain_evaluation(path, stream, tmp_path, monkeypatch):
    from cl_ovq.models.saving import save_model
    from cl_ovq.runs import finish

    file = path if stream is None else swap(path, tmp_path, stream)
    config = load_config(file, [f"output_dir={tmp_path / 'run'}", "evaluation.batch_size=5"])
    draw = finish.figures_of

    def keep(result, model, recorders):
        save_model(tmp_path / "model.pt", model, config, load_stream(config))
        return draw(result, model, recorders)

    monkeypatch.setattr(finish, "figures_of", keep)
    result = run_experiment(config, Console(file=io.StringIO()))
    with torch.no_grad():
        expected = last_row(config, result, tmp_path)
    quantity = {None: "accuracy", TEXT: "bits_per_byte", REGRESSION: "squared_error"}[stream]
    assert result.quantity == quantity
    assert result.matrix[-1] == pytest.approx(expected, rel=1e-4)
    sign = 1 if stream is None else -1
    assert result.metrics[quantity] == pytest.approx(sign * sum(expected) / 2, rel=1e-4)
    assert result.metrics[f"learning_{quantity}"] == pytest.approx(
        sign * (result.matrix[1][0] + result.matrix[2][1]) / 2
    )
    assert result.metrics["forgetting"] == pytest.approx(result.matrix[1][0] - result.matrix[2][0])
    assert (result.matrix[-1][0] < 0) == (stream is not None)
    assert ("accuracy" in result.metrics) == (stream is None)
    console = Console(file=io.StringIO(), width=100)
    console.print(matrix_table(result), summary_table([result]))
    value = f"{result.metrics[quantity]:.3f}"
    name = quantity.replace("_", " ")
    assert re.search(rf"average {name} +│ +{value} ", console.file.getvalue())
    assert f": {'' if stream is None else 'minus '}{name} on test" in console.file.getvalue()
    note = run_note(result)
    assert f"| average {name} | {value} |" in note
    assert f"{'Accuracy' if stream is None else f'Minus {name}'} on each test experience" in note
    assert undefined_metrics(result) == ([] if stream is None else ["accuracy"])


@pytest.mark.parametrize("stream", [None, TEXT, REGRESSION], ids=["recall", "text", "regression"])
def test_lengths_in_pieces_are_the_whole(path, stream, tmp_path, monkeypatch):
    from cl_ovq.evaluation import length_generalization
    from cl_ovq.models import build_model

    config = load_config(path if stream is None else swap(path, tmp_path, stream))
    data = load_stream(config)
    torch.manual_seed(0)
    model = build_model(config, data).eval()
    arguments = (model, data, [64], 300)
    (whole,) = evaluate_lengths(*arguments)
    monkeypatch.setattr(length_generalization, "PIECE", 7)
    monkeypatch.setattr(length_generalization, "BATCH_TOKENS", 130)
    (pieces,) = evaluate_lengths(*arguments)
    assert pieces["value"] == pytest.approx(whole["value"], rel=1e-4)
    assert whole["sequences"] == 6
    assert sum(record["targets"] for record in whole["distances"]) == whole["targets"]
    mean = sum(record["value"] * record["targets"] for record in whole["distances"]) / whole["targets"]
    assert mean == pytest.approx(whole["value"])
    assert whole["state_bytes"] == model.state_bytes(64)
    for record in whole["distances"]:
        assert record["farthest"] == 2 * record["nearest"] - 1
    if stream is None:
        assert whole["targets"] == 6 * 2
        samples = data.at_length(64, 5, "test")
        distances = samples.distances[samples.distances > 0]
        inside = [int(((distances >= r["nearest"]) & (distances <= r["farthest"])).sum()) for r in whole["distances"]]
        assert inside == [record["targets"] for record in whole["distances"]]
    assert lengths_figure({"a": [whole]}, trained=16).axes


def test_lengths_that_a_stream_does_not_have_are_a_mistake_before_training(path, tmp_path):
    for overrides, line in (
        (["evaluation.lengths=[17]"], "evaluation.lengths: 17: length=17: must be even"),
        (["evaluation.lengths=[4]"], "evaluation.lengths: 4: length=4: 2 bindings and 2 queries need"),
    ):
        with pytest.raises(UserError, match=line):
            run_experiment(load_config(path, [*overrides, f"output_dir={tmp_path / 'x'}"]), Console(quiet=True))
    config = load_config("quickstart", ["evaluation.lengths=[64]"])
    with pytest.raises(UserError, match="'split_digits' has no sequences of other lengths"):
        load_stream(config)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stream", [None, REGRESSION], ids=["recall", "regression"])
def test_another_capacity_is_that_of_a_model_built_with_it(path, stream, tmp_path):
    from cl_ovq.models import build_model

    file = path if stream is None else swap(path, tmp_path, stream)
    config = load_config(file)
    data = load_stream(config)
    torch.manual_seed(0)
    model = build_model(config, data).eval()
    records = evaluate_capacities(model, data, [2, 8, 32], [16, 64], 300)
    assert [(record["capacity"], record["tokens"]) for record in records] == [
        (capacity, tokens) for capacity in (2, 8, 32) for tokens in (16, 64)
    ]
    for record in records:
        other = build_model(load_config(file, [f"dictionary.capacity={record['capacity']}"]), data).eval()
        other.load_state_dict(model.state_dict())
        (expected,) = evaluate_lengths(other, data, [record["tokens"]], 300)
        assert record == {"capacity": record["capacity"]} | expected
        assert record["state_bytes"] == other.state_bytes(record["tokens"])
    sizes = [record["state_bytes"] for record in records if record["tokens"] == 64]
    assert sizes == sorted(set(sizes))
    assert evaluate_lengths(model, data, [64], 300)[0] == {
        name: value for name, value in records[3].items() if name != "capacity"
    }  # the model has its own capacity again


@pytest.mark.parametrize("mixer", ["ovq", "vq", "softmax", "linear", "sliding_window"])
def test_sharpened_attention_is_that_of_a_model_with_other_temperatures(path, mixer, tmp_path):
    from cl_ovq.models import build_model

    config = load_config(swap(path, tmp_path, REGRESSION), ["model.pattern=null", f"model.mixer={mixer}"])
    data = load_stream(config)
    torch.manual_seed(0)
    model = build_model(config, data).eval()
    trained = int(data.samples.inputs.shape[1])
    arguments = (data, [trained // 2, trained, 64], 300)
    found = [record["value"] for record in evaluate_lengths(model, *arguments, log_length_scaling=True)]
    plain = [record["value"] for record in evaluate_lengths(model, *arguments)]  # the temperatures are their own again
    other = copy.deepcopy(model)
    factor = math.log(64) / math.log(trained)
    for name, weight in other.named_parameters():
        with torch.no_grad():
            if name.endswith("log_beta"):
                weight += math.log(factor)
            elif mixer == "softmax" and "qkv.weight" in name:
                weight[: len(weight) // 3] *= factor
    expected = [record["value"] for record in evaluate_lengths(other, *arguments)]
    assert found[:2] == plain[:2]
    assert found[2] == pytest.approx(expected[2], rel=1e-5)
    assert (found[2] == plain[2]) == (mixer in ("linear", "sliding_window"))


def test_capacities_are_in_the_result_at_the_trained_length(run):
    _, result = run("evaluation.capacities=[4,8]", "evaluation.length_tokens=100")
    assert [(record["capacity"], record["tokens"]) for record in result.capacities] == [(4, 16), (8, 16)]
    assert result.lengths == []
    assert json.loads(result.to_json())["capacities"] == result.capacities
    console = Console(file=io.StringIO(), width=100)
    console.print(capacities_table([result.capacities]))
    for record in result.capacities:
        line = rf"│ +{record['capacity']} │ +{record['value']:.3f} │ +{record['state_bytes']:,} │"
        assert re.search(line, console.file.getvalue())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model.pattern=[softmax,linear]"],
            r"no layer has a dictionary \(mixers: softmax, linear",
        ),
        (["dictionary.scope=stream"], "with dictionary.scope=stream the dictionary's capacity is fixed"),
        (["evaluation.capacities=[4,0]"], r"evaluation.capacities\[1\]: 0 is too small: it must be at least 1"),
        (["evaluation.capacities=[4,x]"], r"evaluation.capacities\[1\]: 'x' is not a whole number"),
        (["evaluation.lengths=[0]"], r"evaluation.lengths\[0\]: 0 is too small"),
    ],
)
def test_capacities_that_cannot_be_are_a_mistake_before_training(path, tmp_path, overrides, line):
    overrides = ["evaluation.capacities=[4]", *overrides, f"output_dir={tmp_path / 'x'}"]
    with pytest.raises(UserError, match=line):
        run_experiment(load_config(path, overrides), Console(quiet=True))
    with pytest.raises(UserError, match=r"evaluation\.capacities: 'split_digits' has images"):
        check_config(load_config("quickstart", ["evaluation.capacities=[4]", "dictionary.scope=sequence"]))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stream", [None, TEXT, REGRESSION], ids=["recall", "text", "regression"])
def test_a_run_may_end_after_its_first_experiences(path, stream, tmp_path):
    file = path if stream is None else swap(path, tmp_path, stream)
    whole, part = (
        run_experiment(load_config(file, [*more, f"output_dir={tmp_path / name}"]), Console(quiet=True))
        for name, more in (("whole", []), ("part", ["evaluation.stop_after=1"]))
    )
    # To evaluate fewer experiences draws fewer random numbers, so training goes in another order: row 0 alone is alike.
    assert [len(row) for row in part.matrix] == [1, 1]
    assert part.matrix[0] == whole.matrix[0][:1]
    assert part.matrix[1][0] is not None
    assert part.matrices.keys() == whole.matrices.keys()
    assert len(part.matrices.get("loss", part.matrix)) == 2
    sign = 1 if stream is None else -1
    assert part.metrics[part.quantity] == sign * part.matrix[1][0]
    assert part.metrics["forgetting"] is part.metrics["forward_transfer"] is None
    assert part.provenance["train_steps"] * 2 == whole.provenance["train_steps"]


@pytest.mark.parametrize("stream", [None, TEXT, REGRESSION], ids=["recall", "text", "regression"])
def test_validation_data_is_asked_for_only_where_it_is_needed(path, stream, tmp_path):
    file = path if stream is None else swap(path, tmp_path, stream)
    without = ["stream.validation=0", f"output_dir={tmp_path / 'x'}"]
    for override, line in (
        ("evaluation.split=validation", "has no stream 'validation' with these options: known: train, test"),
        ("strategy.name=early_stopping", "early_stopping needs a validation stream: stream.validation is 0"),
    ):
        with pytest.raises(UserError, match=line):
            run_experiment(load_config(file, [override, *without]), Console(quiet=True))
    assert not (tmp_path / "x").exists()
    result = run_experiment(load_config(file, without), Console(quiet=True))
    assert result.provenance["data"]["sizes"]["validation"] == 0


def test_a_linear_time_mixer_reads_65536_tokens(path):
    from cl_ovq.models import build_model

    config = load_config(path, ["dictionary.chunk_size=64"])
    data = load_stream(config)
    model = build_model(config, data).eval()
    (record,) = evaluate_lengths(model, data, [65_536], 1)
    assert record["sequences"] == 2
    assert record["distances"][-1]["farthest"] > 10_000
    assert record["state_bytes"] == model.state_bytes(640)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mixer", ["softmax", "sliding_window", "ovq", "vq", "linear", "gated_delta", "mamba2", "gated_slot"]
)
def test_every_mixer_learns_recall_within_its_capacity(mixer, tmp_path):
    config = load_config("paper/within_capacity", [f"model.mixer={mixer}", f"output_dir={tmp_path / 'run'}"])
    result = run_experiment(config, Console(file=io.StringIO()))
    assert result.metrics["accuracy"] >= 0.95
