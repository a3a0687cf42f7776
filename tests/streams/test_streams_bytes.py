"""Text and books: what is read, how it is cut, and that no part knows another."""

import http.server
import json
import threading
import urllib.parse
from pathlib import Path

import pytest
import torch

from streams import StreamDataError, build_stream, pg19, rows_of
from streams.corpus import cut
from streams.pg19 import PG19Options, download
from streams.text import DOMAINS, TextOptions, installed_files

SMALL = {"train": 20, "validation": 4, "test": 4}


def words(start, count):
    return "\n\n".join(f"paragraph {number} of many" for number in range(start, start + count)).encode()


def test_longer_windows_are_of_their_own_part_of_the_text(tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes(words(1000, 900))
    stream = build_stream("text", TextOptions(data=[str(path)], length=32, **SMALL), seed=0)
    content = path.read_bytes()
    test = round(0.8 * len(content))
    trained = stream.samples.inputs[rows_of(stream.benchmark.streams["train"][0].dataset)]
    validation = max(content.index(bytes(row.tolist())) for row in trained)
    for split, start, end in (("validation", validation, test), ("test", test, len(content))):
        for window in stream.at_length(300, 4, split).inputs:
            place = content.index(bytes(window.tolist()))
            assert start < place < end - 300


def test_windows_are_the_files_bytes_and_the_next_byte_is_the_target(tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes(words(0, 300))
    stream = build_stream("text", TextOptions(data=[str(path)], length=32, **SMALL), seed=0)
    assert (stream.kind, stream.n_classes, stream.class_names) == ("bytes", 256, ("one.txt",))
    content = path.read_bytes()
    parts = {
        name: content.index(bytes(stream.samples.inputs[rows_of(e[0].dataset)[0]].tolist()))
        for name, e in stream.benchmark.streams.items()
    }
    assert parts["train"] < parts["validation"] < parts["test"]
    for row in range(len(stream.samples)):
        text = bytes([*stream.samples.inputs[row].tolist(), int(stream.samples.targets[row, -1])])
        assert text in content
        assert torch.equal(stream.samples.inputs[row, 1:].long(), stream.samples.targets[row, :-1])
    assert (
        stream.samples.decode(0)
        == bytes([*stream.samples.inputs[0].tolist(), int(stream.samples.targets[0, -1])]).decode()
    )


def test_parts_share_no_window_and_the_held_out_ones_are_the_same_for_every_seed(tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes(words(0, 2000))
    first, other = (build_stream("text", TextOptions(data=[str(path)], length=32, **SMALL), seed=s) for s in (0, 1))

    def windows(stream, name):
        return {
            tuple(row) for row in stream.samples.inputs[rows_of(stream.benchmark.streams[name][0].dataset)].tolist()
        }

    assert not windows(first, "train") & (windows(first, "validation") | windows(first, "test"))
    assert windows(first, "test") == windows(other, "test")
    assert windows(first, "validation") == windows(other, "validation")
    assert windows(first, "train") != windows(other, "train")


def test_a_paragraph_that_comes_again_is_left_out():
    licence = b"Permission is granted\nto anyone.\n\nWithout warranty."
    domain = cut(
        "licences", [licence, b"A\r\n\r\n" + licence.replace(b" ", b"  ").upper()], validation_fraction=0.1, limit=10**6
    )
    text = b"".join(domain.splits[name] for name in ("train", "validation", "test"))
    assert text == licence + b"\n\nA"
    assert domain.files == 2


def test_no_more_than_the_limit_is_read():
    read = []

    def documents():
        for number in range(100):
            read.append(number)
            yield words(1000 * number, 40)

    domain = cut("x", documents(), validation_fraction=0.1, limit=2000)
    sizes = {name: len(part) for name, part in domain.splits.items()}
    assert sizes == {"train": 1440, "validation": 160, "test": 400}
    assert len(read) <= 4


def test_what_python_has_on_disk_is_text_of_different_kinds():
    stream = build_stream("text", TextOptions(length=64, limit=60_000, **SMALL), seed=0)
    assert stream.class_names == DOMAINS
    assert all(facts["files"] > 0 for facts in stream.provenance["files"].values())
    text = [
        " ".join(stream.samples.decode(row) for row in rows_of(e.dataset).tolist())
        for e in stream.benchmark.streams["train"]
    ]
    assert text[0].count("self") > 0
    assert stream.at_length(500, 8, "test").inputs.shape == (8, 500)
    for domain in DOMAINS:
        files = installed_files(domain)
        assert files == installed_files(domain)
        assert all(file.is_file() for file in files[:5])


def test_a_folder_is_read_whole_wherever_it_lies(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder / "data" / "deep").mkdir(parents=True)
        for number in range(6):
            (tmp_path / folder / "data" / "deep" / f"{number}.txt").write_bytes(words(100 * number, 60))
    here, there = (
        build_stream("text", TextOptions(data=[str(tmp_path / folder / "data")], length=16, **SMALL), seed=0)
        for folder in ("here", "there")
    )
    assert here.provenance == there.provenance
    assert here.provenance["files"]["data"]["files"] == 6


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": ["/no/such/file"]}, "data: '/no/such/file' is neither a file nor a folder with files"),
        ({"data": []}, "data and domains: give at least one domain"),
        (
            {"domains": ["sources"]},
            "domains: unknown domain 'sources': choose from source, descriptions, licences, headers",
        ),
        ({"domains": ["source", "source"]}, "data and domains: duplicate domain names"),
        ({"domains": ["source"], "limit": 100}, "source: its train text has"),
    ],
)
def test_mistakes(changes, line):
    with pytest.raises(StreamDataError) as error:
        build_stream("text", TextOptions(**SMALL, **changes), seed=0)
    assert str(error.value).startswith(line)


@pytest.fixture
def books(tmp_path):
    """A folder in PG-19's form: books of two sentences a year, in no order."""
    root = tmp_path / "published"
    lines = []
    for split, numbers in (("train", range(100, 112)), ("validation", range(200, 205)), ("test", range(300, 305))):
        (root / split).mkdir(parents=True)
        for number in numbers:
            year = 1919 - 7 * (number % 100)
            (root / split / f"{number}.txt").write_text(f"Book {number} of the year {year}. " * 40)
            lines.append(f'{number},"A title, with a comma",{year},http://example.invalid/{number}\n')
    (root / "metadata.csv").write_text("".join(lines))
    return root


OPTIONS = {"experiences": 2, "books": 6, "length": 24, "train": 50, "validation": 6, "test": 6}


def test_books_come_by_period(books):
    stream = build_stream("pg19", PG19Options(data_dir=str(books), **OPTIONS), seed=0)
    assert stream.provenance["source"] == "stream.data_dir"
    assert stream.class_names == ("period 1: 1884-1898", "period 2: 1905-1919")
    for name, first in (("train", 1), ("validation", 2), ("test", 3)):
        for period, experience in enumerate(stream.benchmark.streams[name]):
            text = " ".join(stream.samples.decode(row) for row in rows_of(experience.dataset).tolist())
            years = {year for year in range(1800, 1920) if f" {year}. " in text}
            assert years
            assert all((year > 1900) == (period == 1) for year in years) or name != "train"
            assert f"Book {first}0" in text
            assert not any(f"Book {other}0" in text for other in {1, 2, 3} - {first})


def test_books_that_are_not_there_are_downloaded_as_published(books, tmp_path, monkeypatch):
    asked = []

    class Storage(http.server.BaseHTTPRequestHandler):
        """Answers as Google's storage interface does."""

        def do_GET(self):
            address = urllib.parse.urlsplit(self.path)
            asked.append(address.path)
            if address.path == "/storage/v1/b/deepmind-gutenberg/o":
                query = urllib.parse.parse_qs(address.query)
                prefix = query["prefix"][0]
                names = [f"{prefix}{file.name}" for file in sorted((books / prefix).iterdir())]
                content = json.dumps(
                    {"items": [{"name": name} for name in names[: int(query["maxResults"][0])]]}
                ).encode()
            else:
                content = (books / address.path.removeprefix("/deepmind-gutenberg/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(pg19, "download", lambda root, counts: download(root, counts, address))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        stream = build_stream("pg19", PG19Options(**OPTIONS), seed=0)
        assert stream.provenance["source"] == "download"
        given = build_stream("pg19", PG19Options(data_dir=str(books), **OPTIONS), seed=0)
        assert torch.equal(stream.samples.inputs, given.samples.inputs)
        assert len(list((tmp_path / "cache").rglob("*.txt"))) == 6 + 2 + 2
        asked.clear()
        build_stream("pg19", PG19Options(**OPTIONS), seed=0)  # the second time from the cache
        assert asked == []
    finally:
        server.shutdown()
        server.server_close()


def test_books_that_cannot_be_had_are_a_mistake_that_names_the_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(pg19, "SERVER", "http://127.0.0.1:1")  # nothing listens on port 1
    monkeypatch.setattr(pg19, "download", lambda root, counts: download(root, counts, pg19.SERVER))
    with pytest.raises(StreamDataError) as error:
        build_stream("pg19", PG19Options(data_dir=str(tmp_path), **OPTIONS), seed=0)
    line = str(error.value)
    assert line.startswith(
        "PG-19 was not found; two ways to provide it: set stream.data_dir to a folder with metadata.csv"
    )
    assert "6 books in train/, 2 books in validation/, 2 books in test/" in line
    assert not list(Path(tmp_path).rglob("*.txt"))


def test_a_book_without_a_year_is_named(books):
    (books / "metadata.csv").write_text("1,title,1900,address\n")
    with pytest.raises(StreamDataError, match="has no entry for book 100"):
        build_stream("pg19", PG19Options(data_dir=str(books), **OPTIONS), seed=0)
    (books / "metadata.csv").write_text("not a list\n")
    with pytest.raises(StreamDataError, match="is not PG-19's list"):
        build_stream("pg19", PG19Options(data_dir=str(books), **OPTIONS), seed=0)
    with pytest.raises(StreamDataError, match=r"books=1: must be at least one per period \(2 periods\)"):
        build_stream("pg19", PG19Options(data_dir=str(books), **(OPTIONS | {"books": 1})), seed=0)
