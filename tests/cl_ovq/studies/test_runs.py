"""The runs of a study: which are made and which are found, and what a stop, a fault or a lost process leaves."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from unittest.mock import patch

import psutil
import pytest
from study_helpers import STUDY, results, run

from cl_ovq.runs.checkpoints.plugin import Checkpoints


def test_what_is_done_is_not_run_again_and_what_is_new_is(done, file):
    _, folder = done
    before = results(folder)
    assert len(before) == 2 + 2 + 2
    again, _ = run(file, folder)
    assert results(folder) == before
    more, _ = run(file, folder, "seeds=3")
    after = results(folder)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2
    assert [len(row.runs) for row in again.rows] == [2, 2]
    assert [len(row.runs) for row in more.rows] == [3, 3]


def test_reported_seeds_can_be_named(done, file):
    _, folder = done
    result, _ = run(file, folder, "seeds=[1, 4]")
    assert [[run.config["seed"] for run in row.runs] for row in result.rows] == [[1, 4]] * 2


def test_every_run_is_named_as_it_ends(file, tmp_path):
    result, said = run(file, tmp_path, "seeds=1")
    lines = [line for line in said.splitlines() if " of 4: " in line]
    assert [line.partition(" ")[0] for line in lines] == ["1", "2", "3", "4"]
    naive, replay = (row.runs[0].metrics["accuracy"] for row in result.rows)
    assert lines[0] == f"1 of 4: digits, mlp, naive, seed 0, test: accuracy {naive:.4g}"
    rate = result.rows[1].chosen["optimizer.learning_rate"]
    assert (
        lines[3] == f"4 of 4: digits, mlp, replay, optimizer.learning_rate={rate}, seed 0, test: accuracy {replay:.4g}"
    )


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(file, done, tmp_path):
    trained = []
    own = Checkpoints.after_training_iteration

    def note(self, strategy, **kwargs):
        own(self, strategy, **kwargs)
        trained.append(strategy.clock.train_exp_counter)
        if stop and trained[-1] == 1:
            raise KeyboardInterrupt

    with patch.object(Checkpoints, "after_training_iteration", note):
        stop = True
        with pytest.raises(KeyboardInterrupt):
            run(file, tmp_path, "seeds=1")
        assert not results(tmp_path)
        stop, begun = False, len(trained)
        result, _ = run(file, tmp_path, "seeds=1")
    assert trained[0] == 0
    assert trained[begun] == 1  # the first experience is not learned again
    assert [row.runs[0].matrix for row in result.rows] == [row.runs[0].matrix for row in done[0].rows]


@pytest.mark.slow  # every process imports for ten seconds
@pytest.mark.parametrize(("blow", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_what_runs_in_other_processes_ends_with_the_study(file, tmp_path, blow, code):
    endless = file.read_text().replace("set: {", "set: {strategy.epochs: 1000000, ")
    (tmp_path / "endless.yaml").write_text(endless)
    command = [sys.executable, "-c", "from cl_ovq.cli import main; main()", "study", "endless.yaml", "--jobs", "2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as study:
        try:
            deadline = time.monotonic() + 120
            while len(list(tmp_path.glob("runs/studies/endless/*/*"))) < 2:
                assert study.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            workers = psutil.Process(study.pid).children(recursive=True)
            assert len(workers) >= 2
            study.send_signal(blow)
            _, error = study.communicate(timeout=60)
        finally:
            study.kill()
    assert study.returncode == code
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.slow  # every process imports for ten seconds
def test_a_study_goes_on_without_a_process_that_was_killed(file, tmp_path):
    def kill():
        while not killed.is_set():
            time.sleep(0.1)
            for worker in multiprocessing.active_children() if list(tmp_path.glob("*/*")) else ():
                worker.kill()
                killed.set()

    killed = threading.Event()
    threading.Thread(target=kill, daemon=True).start()
    result, said = run(file, tmp_path, "seeds=1", jobs=2)
    assert killed.is_set()
    assert 1 <= len(result.failed) <= 2
    assert "terminated abruptly" in said
    assert result.rows


@pytest.mark.slow  # every process imports for ten seconds
def test_a_run_in_a_process_of_its_own_gives_the_same(done, file, tmp_path):
    result, _ = done
    other, _ = run(file, tmp_path, jobs=2)
    assert [[run.matrix for run in row.runs] for row in other.rows] == [
        [run.matrix for run in row.runs] for row in result.rows
    ]


def test_a_run_that_fails_is_said_and_the_others_are_kept(tiny_path, tmp_path):
    path = tmp_path / "broken.yaml"
    text = STUDY.format(tiny=tiny_path).replace(
        "replay: {strategy.name: replay}", "odd: {model.name: patch_transformer, model.patch_size: 3}"
    )
    path.write_text(text.replace("refit: {strategy: replay}", ""))
    result, said = run(path, tmp_path / "runs", "seeds=1")
    assert [row.labels["strategy"] for row in result.rows] == ["naive"]
    assert "model.patch_size: 3 does not divide" in said
    assert len(result.failed) == 2
