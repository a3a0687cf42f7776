"""The recorded matrix against a plain evaluation of the same model on the raw arrays, and against Avalanche."""

import copy

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from sklearn.datasets import load_digits

from cl_ovq.evaluation.matrix import MatrixRecorder
from cl_ovq.models import build_model
from cl_ovq.training import seed_everything
from streams import rows_of


@torch.no_grad()
def plain_evaluation(model, trained, experience):
    """Return accuracy, task-masked accuracy and loss on a test experience, one sample after the other."""
    images, digits = load_digits(return_X_y=True)
    original, labels = (
        part[experience] for part in (trained.stream.original_classes, trained.stream.classes_per_experience)
    )
    rows = rows_of(list(trained.test)[experience].dataset).tolist()
    assert {int(digits[row]) for row in rows} == set(original)
    model.eval()
    x = torch.tensor(images[rows] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    every = model(x) if trained.stream.scenario != "task_incremental" else model(x, experience)
    hits = masked_hits = 0
    losses = []
    for row, logits in zip(rows, every.double().numpy(), strict=True):
        target = labels[original.index(int(digits[row]))]
        hits += int(np.argmax(logits)) == target
        masked_hits += max(labels, key=lambda label: logits[label]) == target
        losses.append(np.log(np.exp(logits - logits.max()).sum()) - (logits[target] - logits.max()))
    return hits / len(rows), masked_hits / len(rows), float(np.mean(losses))


@pytest.mark.parametrize("scenario", ["class_incremental", "domain_incremental", "task_incremental"])
def test_matrix_is_that_of_a_plain_evaluation(session, scenario):
    probe = session(f"stream.scenario={scenario}")
    recorder = MatrixRecorder(probe.stream.classes_per_experience)
    trained = session(f"stream.scenario={scenario}", metrics=(recorder, accuracy_metrics(experience=True)))
    models, avalanche = [], []
    for row in range(3):
        if row:
            trained.strategy.train(trained.train[row - 1], eval_streams=[])
        recorder.row = row
        values = trained.strategy.eval(trained.test)
        models.append(copy.deepcopy(trained.model))
        avalanche.append([value for name, value in sorted(values.items()) if name.startswith("Top1_Acc_Exp/eval")])
    found = recorder.result()
    assert np.shape(avalanche) == (3, 2)
    np.testing.assert_allclose(found["accuracy"], avalanche, atol=1e-9)
    for row, model in enumerate(models):
        for column in range(2):
            accuracy, masked, loss = plain_evaluation(model, trained, column)
            assert found["accuracy"][row, column] == accuracy
            assert found["task_masked_accuracy"][row, column] == masked
            assert found["loss"][row, column] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"][1, 0] > found["accuracy"][0, 0] + 0.1  # something was learned
    if scenario == "class_incremental":
        assert (found["task_masked_accuracy"] >= found["accuracy"]).all()
        assert (found["task_masked_accuracy"] != found["accuracy"]).any()
    else:
        np.testing.assert_array_equal(found["task_masked_accuracy"], found["accuracy"])


def test_matrix_starts_unmeasured_and_forgets():
    recorder = MatrixRecorder([[0, 1], [2, 3], [4]])
    assert all(matrix.shape == (4, 3) for matrix in recorder.result().values())
    assert all(np.isnan(matrix).all() for matrix in recorder.result().values())
    recorder.matrices["loss"][1] = 0
    recorder.row = 2
    recorder.reset()
    assert np.isnan(recorder.result()["loss"]).all()
    assert recorder.row == 0


@pytest.mark.parametrize("batch_size", [7, 100])
def test_matrix_does_not_depend_on_the_evaluation_batch(run, batch_size):
    whole, parts = run(), run(f"evaluation.batch_size={batch_size}")
    assert parts.matrix == whole.matrix
    np.testing.assert_allclose(parts.matrices["loss"], whole.matrices["loss"], rtol=1e-5)


def test_row_0_is_before_training(run, session):
    fresh = session()
    seed_everything(0, "model")
    model = build_model(fresh.config, fresh.stream)
    expected = [plain_evaluation(model, fresh, column) for column in range(2)]
    assert run().matrix[0] == [accuracy for accuracy, _, _ in expected]
    assert run().matrices["task_masked_accuracy"][0] == [masked for _, masked, _ in expected]
