"""Evaluating a finished run: what it measured is found again, and nothing of it changes."""

import numpy as np
import pytest

from cl_ovq.errors import UserError
from cl_ovq.finished import evaluate_finished


@pytest.mark.parametrize("settings", [(), ("model.head=memory",), ("strategy.name=slda", "model.name=pixels")])
def test_its_own_stream_gives_what_the_run_measured(run, settings):
    result = run(*settings)
    found = evaluate_finished(result.output_dir)
    assert (found.own, found.learned) == (True, 2)
    np.testing.assert_allclose(found.accuracy, result.matrix[-1])
    np.testing.assert_allclose(found.task_masked_accuracy, result.matrices["task_masked_accuracy"][-1])
    for name in ("accuracy", "forgetting", "backward_transfer"):
        assert found.metrics[name] == pytest.approx(result.metrics[name])
    assert all(value is not None and value > 0.5 for value in found.linear_probe)


def test_another_stream_is_judged_without_training(run):
    result = run()
    found = evaluate_finished(result.output_dir, ["stream.experiences=5", "evaluation.stream=validation"])
    assert not found.own
    assert len(found.accuracy) == len(found.linear_probe) == 5
    assert "forgetting" not in found.metrics
    gain = np.mean(found.linear_probe) - np.mean(found.untrained_probe)
    assert found.metrics["forward_transfer_linear_probe"] == pytest.approx(gain)
    again = evaluate_finished(result.output_dir)  # the checkpoint is as it was
    np.testing.assert_allclose(again.accuracy, result.matrix[-1])


def test_mistakes_are_said(run, tmp_path):
    directory = run().output_dir
    with pytest.raises(UserError, match="holds no checkpoint"):
        evaluate_finished(str(tmp_path))
    with pytest.raises(UserError, match=r"'model\.width=3': a finished run cannot be changed"):
        evaluate_finished(directory, ["model.width=3"])
    with pytest.raises(UserError, match="unknown stream 'split_digit'"):
        evaluate_finished(directory, ["stream.name=split_digit"])
    with pytest.raises(UserError, match=r"has images of \[1, 28, 28\], and the model was built for \[1, 8, 8\]"):
        evaluate_finished(directory, ["stream.name=split_fashion_mnist"])
    (tmp_path / "checkpoint.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a checkpoint"):
        evaluate_finished(str(tmp_path / "checkpoint.bin"))
