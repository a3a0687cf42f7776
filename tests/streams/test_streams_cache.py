"""The cache of decoded samples: whole or not there, made once by one of many, and never the memory it stands for."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pty
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from streams import StreamDataError, build_stream
from streams.cache import Sink, cached, digest_of, in_memory, mapped
from streams.features import FeatureOptions
from streams.progress import progress
from streams.samples import MappedSamples, TensorSamples, samples_of
from streams.split import LabelledData

FORK = multiprocessing.get_context("fork")
CHUNKS = [np.full((3, 4), number, dtype=np.float32) for number in range(5)]
NAME = digest_of("test")


def make(sink, between=lambda number: None):
    for number, chunk in enumerate(CHUNKS):
        between(number)
        sink.write(chunk)
    files = {"x": {"sha256": sink.sha256}}
    targets, domains = np.arange(15) % 3, np.arange(15) % 2
    names, domain_names = ("a", "b", "c"), ("even", "odd")
    return LabelledData(
        "x", "test", files, np.empty(0), targets, 1.0, names, n_test=4, domains=domains, domain_names=domain_names
    )


def same(found):
    expected = in_memory(make)
    assert found.inputs.dtype == expected.inputs.dtype
    assert found.inputs.tobytes() == np.concatenate(CHUNKS).tobytes() == expected.inputs.tobytes()
    for name in ("dataset", "source", "files", "divisor", "class_names", "n_test", "domain_names"):
        assert getattr(found, name) == getattr(expected, name)
    assert np.array_equal(found.targets, expected.targets)
    assert np.array_equal(found.domains, expected.domains)
    return True


def fail(sink):
    raise AssertionError("made again")


def test_an_entry_is_made_once_and_mapped(tmp_path):
    assert same(cached(NAME, tmp_path / "cache", make))
    found = cached(NAME, tmp_path / "cache", fail)
    assert same(found)
    assert isinstance(found.inputs, np.memmap)
    assert not found.inputs.flags.writeable


def test_a_writer_that_is_killed_leaves_no_entry(tmp_path):
    """A real kill, in the middle of writing; what it left is removed by the next writer."""
    begun = FORK.Event()

    def hang(number):
        if number == 3:
            begun.set()
            time.sleep(60)

    process = FORK.Process(target=lambda: cached(NAME, tmp_path, lambda sink: make(sink, hang)))
    process.start()
    assert begun.wait(20)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / NAME).exists()
    assert len(list(tmp_path.glob("*.part"))) == 1
    assert same(cached(NAME, tmp_path, make))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("locks", [True, False])
def test_of_several_writers_all_read_the_same(tmp_path, monkeypatch, locks):
    """With locks one makes the entry; without, as on some network file systems, all may, and the first one's stays."""
    if not locks:

        def none(*arguments):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", none)
    together = FORK.Barrier(6)
    results = FORK.Queue()

    def slowly(sink):
        results.put("made")
        return make(sink, lambda number: time.sleep(0.05))

    def write():
        together.wait()
        results.put(same(cached(NAME, tmp_path, slowly)))

    processes = [FORK.Process(target=write) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    found = []
    while len([one for one in found if one is True]) < 6:
        found.append(results.get(timeout=10))
    if locks:
        assert found.count("made") == 1
    assert not list(tmp_path.glob("*.part"))
    assert same(cached(NAME, tmp_path, fail))


@pytest.mark.parametrize(
    "damage", ["cut off", "no facts", "half of the facts", "no targets", "one target", "no inputs"]
)
def test_an_entry_that_is_not_whole_is_made_again(tmp_path, damage):
    cached(NAME, tmp_path, make)
    place = tmp_path / NAME
    if damage == "cut off":
        os.truncate(place / "inputs", 100)
    elif damage == "half of the facts":
        (place / "facts.json").write_text((place / "facts.json").read_text()[:40])
    elif damage == "one target":
        np.save(place / "targets.npy", np.zeros(1))
    else:
        name = {"no facts": "facts.json", "no targets": "targets.npy", "no inputs": "inputs"}[damage]
        (place / name).unlink()
    with pytest.raises(AssertionError, match="made again"):
        cached(NAME, tmp_path, fail)
    assert same(cached(NAME, tmp_path, make))


def test_what_fails_while_it_is_made_leaves_nothing(tmp_path):
    def broken(number):
        if number == 2:
            raise StreamDataError("a file is damaged")

    with pytest.raises(StreamDataError, match="a file is damaged"):
        cached(NAME, tmp_path, lambda sink: make(sink, broken))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_no_room_is_told_in_a_line(tmp_path):
    with pytest.raises(StreamDataError, match=r"GB left, but the samples need 1000000000.0 GB: set another folder"):
        cached(NAME, tmp_path, make, nbytes=10**18)
    with (
        pytest.raises(StreamDataError, match="cache_dir: cannot write to /dev: No space left on device"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        Sink(full).write(CHUNKS[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamDataError, match=r"cache_dir: cannot write to .*file: File exists: set another folder"):
        cached(NAME, tmp_path / "file", make)


def test_a_stream_takes_no_memory_for_what_lies_in_a_file(tmp_path, monkeypatch):
    """Half a gigabyte on disk (most of it never written), of which a process holds what it has asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    count, features = 65_536, 2048
    vectors = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (count, features))
    vectors[::1000] = np.arange(0, count, 1000)[:, None]
    del vectors
    (tmp_path / "y.txt").write_text("a\nb\n" * (count // 2))
    options = FeatureOptions(data=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.txt"))
    build_stream("split_digits", seed=0)  # imports what every stream needs
    before = anonymous()
    stream = build_stream("features", options, seed=0)
    for rows in torch.arange(count).split(1024):
        assert stream.samples.gather(rows)[rows % 1000 == 0].mean(1).tolist() == rows[rows % 1000 == 0].tolist()
    assert os.path.getsize(tmp_path / "x.npy") > 500e6
    assert anonymous() - before < 100e6


@pytest.mark.parametrize(("count", "shape", "offset"), [(5, (3,), 0), (40, (1, 33, 31), 128), (3, (5000,), 4096)])
def test_rows_of_a_mapped_file_are_those_of_memory(tmp_path, count, shape, offset):
    """Rows that lie anywhere among the pages of a file, the last one at its end; also of a part of the file."""
    content = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    (tmp_path / "inputs").write_bytes(bytes(offset) + content.tobytes())
    rows = torch.tensor([count - 1, 0, 1, 1, count - 1])
    whole = mapped(tmp_path / "inputs", content.dtype, content.shape, offset)
    for inputs, expected in ((whole, content), (whole[1:], content[1:])):
        samples = samples_of(inputs, torch.arange(len(inputs)), divisor=255.0)
        assert isinstance(samples, MappedSamples)
        in_order = TensorSamples(torch.from_numpy(expected), torch.arange(len(inputs)), divisor=255.0)
        chosen = rows.clamp(max=len(inputs) - 1)
        assert torch.equal(samples.gather(chosen), in_order.gather(chosen))
        assert torch.equal(samples[1][0], in_order[1][0])


def anonymous():
    """Return the bytes of memory that this process holds beside mapped files."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capfd):
    with progress("decoding", 10) as advance:
        advance(5)
    assert capfd.readouterr() == ("", "")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with progress("decoding", 10) as advance:
            advance(5)
        terminal.write("end")
        terminal.flush()
        shown = ""
        while "end" not in shown:
            shown += os.read(master, 1 << 16).decode(errors="replace")
    os.close(master)
    assert "decoding" in shown
    assert "5/10" in shown
