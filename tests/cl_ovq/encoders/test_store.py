"""Kept features: computed once by one of many, whole or not there, and gone on with after a kill."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cl_ovq.encoders import store
from cl_ovq.encoders.store import FACTS, FEATURES, PROGRESS, in_memory, stored
from cl_ovq.errors import UserError

FORK = multiprocessing.get_context("fork")
ROWS, NAME, ABOUT = 50, "x" * 40, {"name": "test"}
VALUES = np.random.default_rng(0).normal(size=(ROWS, 7)).astype(np.float32)


def encode(start, between=lambda row: None):
    for row in range(start, ROWS, 4):
        between(row)
        yield VALUES[row : row + 4]


def never(start):
    raise AssertionError("computed again")


def same(found):
    assert found.values.dtype == np.float32
    assert np.array_equal(found.values, VALUES)
    assert found.sha256 == hashlib.sha256(VALUES.tobytes()).hexdigest()
    return True


def test_features_are_computed_once_and_mapped(tmp_path):
    assert same(in_memory(encode))
    assert same(stored(tmp_path / "new", NAME, ROWS, encode, ABOUT))
    found = stored(tmp_path / "new", NAME, ROWS, never, ABOUT)
    assert same(found)
    assert isinstance(found.values, np.memmap)
    assert json.loads((tmp_path / "new" / NAME / FACTS).read_text())["about"] == ABOUT


def _one_of_eight(root, traces, number):
    def between(row):
        (traces / f"{number}").touch()
        time.sleep(0.01)

    same(stored(root, NAME, ROWS, lambda start: encode(start, between), ABOUT))
    (traces / f"{number} is right").touch()


def test_of_eight_processes_one_computes(tmp_path):
    (traces := tmp_path / "traces").mkdir()
    workers = [FORK.Process(target=_one_of_eight, args=(tmp_path / "root", traces, number)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    names = sorted(path.name for path in traces.iterdir())
    assert len([name for name in names if "right" in name]) == 8
    assert len([name for name in names if "right" not in name]) == 1
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == [NAME, f"{NAME}.lock"]


def _killed(root, kill_at):
    store.EVERY_SECONDS = 0

    def between(row):
        if row >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    stored(root, NAME, ROWS, lambda start: encode(start, between), ABOUT)


def kill(root, at):
    worker = FORK.Process(target=_killed, args=(root, at))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL


def test_after_a_kill_the_next_goes_on(tmp_path):
    kill(tmp_path, 20)
    assert not (tmp_path / NAME).exists()
    starts = []

    def going_on(start):
        starts.append(start)
        return encode(start)

    kill(tmp_path, 40)  # and the next is killed, too
    assert same(stored(tmp_path, NAME, ROWS, going_on, ABOUT))
    assert starts == [40]
    assert same(stored(tmp_path, NAME, ROWS, never, ABOUT))


@pytest.mark.parametrize("damage", ["longer", "shorter", "no record", "other record"])
def test_only_what_is_recorded_counts(tmp_path, damage):
    kill(tmp_path, 20)
    part = tmp_path / f"{NAME}.part"
    features, record = part / FEATURES, part / PROGRESS
    if damage == "longer":  # after the record, as a machine that loses power may leave it
        features.write_bytes(features.read_bytes() + bytes(1000))
    elif damage == "shorter":
        os.truncate(features, 100)
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("{")
    assert same(stored(tmp_path, NAME, ROWS, encode, ABOUT))


def test_a_kill_just_before_the_end_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store.Path, "rename", lambda self, target: os._exit(9))
    worker = FORK.Process(target=stored, args=(tmp_path, NAME, ROWS, encode, ABOUT))
    worker.start()
    worker.join()
    monkeypatch.undo()
    assert worker.exitcode == 9
    assert same(stored(tmp_path, NAME, ROWS, never, ABOUT))


@pytest.mark.parametrize("damage", ["truncated", "no facts", "other rows"])
def test_a_damaged_entry_is_made_anew(tmp_path, damage):
    stored(tmp_path, NAME, ROWS, encode, ABOUT)
    place = tmp_path / NAME
    if damage == "truncated":
        os.truncate(place / FEATURES, 99)
    elif damage == "no facts":
        (place / FACTS).unlink()
    else:
        facts = json.loads((place / FACTS).read_text())
        (place / FACTS).write_text(json.dumps(facts | {"shape": [ROWS + 1, 7]}))
    assert same(stored(tmp_path, NAME, ROWS, encode, ABOUT))


def test_without_locks_every_process_computes_and_one_stays(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    late = []

    def overtaken(start):
        if not late:
            late.append(stored(tmp_path, NAME, ROWS, encode, ABOUT))
        return encode(start)

    assert same(stored(tmp_path, NAME, ROWS, overtaken, ABOUT))
    assert same(late[0])
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_what_fails_leaves_no_entry(tmp_path):
    def fails(start):
        yield VALUES[:4]
        raise UserError("not finite")

    with pytest.raises(UserError, match="not finite"):
        stored(tmp_path, NAME, ROWS, fails, ABOUT)
    assert not (tmp_path / NAME).exists()
    assert same(stored(tmp_path, NAME, ROWS, encode, ABOUT))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"encoder\.cache_dir: cannot write to .*file.*: .*encoder\.cache=false"):
        stored(tmp_path / "file" / "folder", NAME, ROWS, encode, ABOUT)


def test_a_full_disk_is_said_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    with pytest.raises(UserError, match=r"encoder\.cache_dir: .* has 0\.0 GB left"):
        stored(tmp_path, NAME, ROWS, encode, ABOUT)
