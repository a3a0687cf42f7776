"""Stores that can never be opened are refused before training; one that stands still is waited for a minute in all."""

import os
import socket
import sqlite3

import pytest

from cl_ovq.tracking import Tracker
from cl_ovq.tracking.process import SenderProcess

WRONG = {
    "sqlite:///": "it names no file",
    "sqlite:///:memory:": "it names no file",
    "sqlite:////tmp": "it is a folder",
    "sqlite:///fifo": "it is not a file",
    "sqlite:///text": "file is not a database",
    "sqlite:///half": "malformed",
    "sqlite:////dev/null/store.db": "/dev/null cannot be written to",
    "sqlite:////proc/none/store.db": "",
    "sqlite:///nul%00.db": "",
    "sqlite:a.db": "write sqlite:///a.db, with three slashes",
    "sqlite+pysqlite:///a.db": "with three slashes",
    "a.db": "it is not a URL: write sqlite:///a.db",
    "http://[::1": "Invalid IPv6 URL",
    "http://host:99999": "Port out of range",
    "http://host:port": "Port could not be cast",
    "http://host:0": "port 0 is none",
    "http://": "it names no server",
    "https:///path": "it names no server",
    "http:host": "it names no server",
    "http://two words": "it names no server",
    "postgresql://me@host:99999/db": "Port out of range",
    "ftp://host/path": "",
}


@pytest.mark.parametrize("uri", WRONG)
def test_what_can_never_be_opened_is_refused_at_once(call, tiny_path, tmp_path, monkeypatch, uri):
    """Were it waited for, this would say that the store did not answer, and train."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("no database\n" * 1000)
    sqlite3.connect(tmp_path / "half").executescript("create table a (b); insert into a values (1);")
    (tmp_path / "half").write_bytes((tmp_path / "half").read_bytes()[:100] + b"\xff" * 5000)
    before = set(tmp_path.iterdir())
    monkeypatch.setattr("cl_ovq.tracking.tracker.OPENING_SECONDS", 600.0)
    code, out, error = call("run", tiny_path, "tracking.enabled=true", f"tracking.uri={uri}", "output_dir=out")
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    assert error.startswith("error: tracking.uri: cannot open the store '")
    assert WRONG[uri] in error
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("folder", ["/proc/self", "/proc/self/fd", "/dev/null/out"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_training(call, tiny_path, tmp_path, folder):
    """Of `/proc` even root may do so, by what its permissions say."""
    code, out, error = call("run", tiny_path, f"output_dir={folder}")
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    assert error.startswith("error: output_dir: ")


def test_a_sender_that_stands_still_is_waited_for_once_in_all(tmp_path, monkeypatch, capfd):
    own, waited = SenderProcess.answer, []

    def answer(self, number, seconds):
        waited.append(seconds)
        return own(self, number, seconds)

    monkeypatch.setattr(SenderProcess, "answer", answer)
    monkeypatch.setattr("cl_ovq.tracking.tracker.ENDING_SECONDS", 0.5)
    monkeypatch.setattr("cl_ovq.tracking.tracker.ASKING_SECONDS", 0.25)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Tracker(tmp_path, uri=uri, experiment="e", run_name="r", tags={}, parameters={}) as tracker:
            assert [tracker.run_id, tracker.run_id, tracker.run_id] == [None] * 3
    SenderProcess.shared()._process.kill()
    assert len(waited) >= 2
    assert sum(waited) <= 0.5
    assert f"not all was sent to MLflow (no answer): cl-ovq sync {tmp_path} --uri {uri}" in capfd.readouterr().err
