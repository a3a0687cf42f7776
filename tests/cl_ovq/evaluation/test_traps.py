"""Where platforms measure wrongly: each trap, shown on Avalanche where it is there, and our number beside it."""

import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from rich.console import Console
from torch import nn

from cl_ovq.evaluation import metrics
from cl_ovq.evaluation.matrix import MatrixRecorder
from cl_ovq.runs.run import run_experiment
from streams import SplitOptions, build_stream, rows_of

pytestmark = pytest.mark.filterwarnings("ignore")


def naive(stream, *found):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, stream.n_classes))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=3,
        eval_mb_size=64,
        evaluator=EvaluationPlugin(*found, loggers=[]),
    )


def plain_accuracy(model, stream, experience):
    rows = rows_of(stream.benchmark.streams["test"][experience].dataset)
    with torch.no_grad():
        return float((model(stream.samples.gather(rows)).argmax(1) == stream.samples.targets[rows]).double().mean())


def test_stream_accuracy_of_avalanche_counts_samples_and_unseen_experiences():
    """Ours counts every experience alike, and along the stream those learned so far."""
    stream = build_stream("split_digits", SplitOptions(scenario="class_incremental", experiences=3), seed=0)
    recorder = MatrixRecorder(stream.classes_per_experience)
    strategy = naive(stream, recorder, accuracy_metrics(stream=True))
    test = stream.benchmark.streams["test"]
    strategy.train(stream.benchmark.streams["train"][0], eval_streams=[])
    recorder.row = 1
    reported = strategy.eval(test)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]
    row = [plain_accuracy(strategy.model, stream, j) for j in range(3)]
    sizes = [len(rows_of(e.dataset)) for e in test]
    assert len(set(sizes)) > 1
    assert reported == pytest.approx(np.average(row, weights=sizes))
    matrix = recorder.result()["accuracy"]
    assert metrics.seen_average(matrix)[0] == pytest.approx(row[0])
    assert metrics.all_task_accuracy(matrix)[0] == pytest.approx(np.mean(row))
    assert reported < 0.5 < metrics.seen_average(matrix)[0]


@pytest.mark.parametrize("online", [False, True])
def test_forgetting_of_avalanche_is_zero_on_online_streams(online):
    """Its identifiers are those of the small experiences there; on a plain stream it is the last row of our drops."""
    stream = build_stream("split_digits", SplitOptions(scenario="class_incremental", experiences=2), seed=0)
    recorder = MatrixRecorder(stream.classes_per_experience)
    strategy = naive(stream, recorder, forgetting_metrics(stream=True), bwt_metrics(stream=True))
    test = stream.benchmark.streams["test"]
    for row, experience in enumerate(stream.benchmark.streams["train"], start=1):
        for part in split_online_stream([experience], experience_size=300) if online else [experience]:
            strategy.train(part, eval_streams=[])
        recorder.row = row
        reported = strategy.eval(test)
    matrix = recorder.result()["accuracy"]
    matrix[0] = 0
    lost = [plain_accuracy(strategy.model, stream, 0), matrix[1, 0]]
    assert metrics.forgetting(matrix) == pytest.approx(lost[1] - lost[0])
    assert metrics.forgetting(matrix) > 0.3
    assert metrics.backward_transfer(matrix) == pytest.approx(lost[0] - lost[1])
    expected = 0.0 if online else metrics.forgetting(matrix)
    assert reported["StreamForgetting/eval_phase/test_stream"] == pytest.approx(expected)
    assert reported["StreamBWT/eval_phase/test_stream"] == pytest.approx(-expected)


def test_forward_transfer_is_minus_the_accuracy_before_training_where_classes_grow(run):
    result = run("strategy.name=naive", "strategy.epochs=4")
    untrained = np.mean(result.matrix[0][1:])
    assert result.metrics["forward_transfer"] == pytest.approx(-untrained)
    assert result.metrics["forward_transfer_task_masked"] != result.metrics["forward_transfer"]


def test_the_baseline_of_transfer_is_the_model_before_it_learned(run, session):
    """Not the trained one, against which transfer would be about zero."""
    fresh = session("stream.scenario=domain_incremental")
    result = run("stream.scenario=domain_incremental", "strategy.name=naive", "strategy.epochs=4")
    before = plain_accuracy(fresh.model, fresh.stream, 1)
    assert result.matrix[0][1] == before
    assert result.metrics["forward_transfer"] == pytest.approx(result.matrix[1][1] - before)


def test_one_seed_is_of_the_stream_and_of_training(tiny, tmp_path):
    """In Avalanche a benchmark's seed leaves training to whatever the generators hold when it begins."""
    ours, avalanche = [], []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        random.seed(noise)
        config = tiny("strategy.name=replay", f"output_dir={tmp_path / str(noise)}")
        ours.append(run_experiment(config, Console(quiet=True)).matrix)
        stream = build_stream("split_digits", SplitOptions(experiences=2), seed=0)
        strategy = naive(stream)
        torch.manual_seed(noise)
        strategy.train(stream.benchmark.streams["train"][0], eval_streams=[])
        avalanche.append([weight.tolist() for weight in strategy.model.parameters()])
    assert ours[0] == ours[1]
    assert avalanche[0] != avalanche[1]


@pytest.mark.parametrize("experiences", [1, 2, 5])
def test_validation_data_holds_every_class_of_its_experience(experiences):
    """Split off without shuffling, sorted data leaves one class there."""
    stream = build_stream("split_digits", SplitOptions(experiences=experiences), seed=3)
    for experience, classes in zip(stream.benchmark.streams["validation"], stream.classes_per_experience, strict=True):
        assert set(stream.samples.targets[rows_of(experience.dataset)].tolist()) == set(classes)
