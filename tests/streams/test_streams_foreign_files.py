"""Files of data sets that are there and are not what they should be: one line that names them, and no download."""

from __future__ import annotations

import gzip
import os
import resource

import numpy as np
import pytest
import torchvision

from streams import SplitOptions, StreamDataError, build_stream
from streams.fashion_mnist import FILES
from streams.pg19 import PG19Options
from streams.text import TextOptions


def idx(magic: int, *sizes: int, content: bytes = b"") -> bytes:
    return np.array([magic, *sizes], dtype=">u4").tobytes() + content


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder with MNIST's files, ten images each, as torchvision lays them out."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])  # nothing listens on port 1
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(0x803, 40, 28, 28, content=bytes(40 * 784)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(0x801, 40, content=bytes(range(10)) * 4))
    return folder


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def test_what_is_right_is_read(raw):
    assert build_stream("split_mnist", SplitOptions(data_dir=str(raw.parents[1])), seed=0).n_classes == 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param(IMAGES, b"", id="empty"),
        pytest.param(IMAGES, b"<html>not found</html>" * 100, id="a page"),
        pytest.param(IMAGES, gzip.compress(idx(0x803, 40, 28, 28, content=bytes(40 * 784))), id="still packed"),
        pytest.param(IMAGES, gzip.compress(bytes(5000))[:50], id="a truncated archive"),
        pytest.param(IMAGES, idx(0x803, 40, 28, 28, content=bytes(100)), id="truncated"),
        pytest.param(IMAGES, idx(0x803, 40, 28, 28), id="header alone"),
        pytest.param(IMAGES, idx(0x803, 2**31, 2**31, 2**31, content=bytes(784)), id="sizes of an ocean"),
        pytest.param(IMAGES, idx(0x803, 40, 14, 56, content=bytes(40 * 784)), id="another shape"),
        pytest.param(IMAGES, idx(0x803, 0, 28, 28), id="no images"),
        pytest.param(IMAGES, idx(0x803, 39, 28, 28, content=bytes(39 * 784)), id="fewer images than labels"),
        pytest.param(IMAGES, idx(0x801, 40 * 784, content=bytes(40 * 784)), id="one dimension"),
        pytest.param(IMAGES, idx(0xD03, 40, 28, 28, content=bytes(4 * 40 * 784)), id="floats"),
        pytest.param(IMAGES, idx(0x1F03, 40, 28, 28, content=bytes(40 * 784)), id="no such type"),
        pytest.param(LABELS, idx(0x801, 40, content=bytes([10] * 40)), id="labels beyond the classes"),
        pytest.param(LABELS, idx(0x801, 0), id="no labels"),
        pytest.param(LABELS, idx(0x801, 41, content=bytes(41)), id="more labels than images"),
        pytest.param(LABELS, idx(0x803, 40, 1, 1, content=bytes(40)), id="labels of three dimensions"),
        pytest.param(LABELS, os.urandom(48), id="noise"),
    ],
)
def test_mnist_that_is_none(raw, name, content):
    (raw / name).write_bytes(content)
    with pytest.raises(StreamDataError) as error:
        build_stream("split_mnist", SplitOptions(data_dir=str(raw.parents[1])), seed=0)
    assert str(error.value).startswith("MNIST: the ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/nowhere", path)])
def test_mnist_files_that_are_no_files(raw, make):
    (raw / IMAGES).unlink()
    make(raw / IMAGES)
    with pytest.raises(StreamDataError, match=r"^MNIST was not found; two ways to provide it"):
        build_stream("split_mnist", SplitOptions(data_dir=str(raw.parents[1])), seed=0)


@pytest.fixture
def books(tmp_path):
    for split, numbers in (("train", range(100, 104)), ("validation", (200, 201)), ("test", (300, 301))):
        (tmp_path / split).mkdir()
        for number in numbers:
            (tmp_path / split / f"{number}.txt").write_text("A book. " * 100)
    rows = [f"{number},Title,{1800 + number % 100},address\n" for number in (*range(100, 104), 200, 201, 300, 301)]
    (tmp_path / "metadata.csv").write_text("".join(rows))
    return tmp_path


def build_books(root):
    options = {"experiences": 2, "books": 4, "length": 24, "train": 20, "validation": 4, "test": 4}
    return build_stream("pg19", PG19Options(data_dir=str(root), **options), seed=0)


@pytest.mark.parametrize(
    "line",
    ["1,%s,1800,a" % ("x" * 140_000), "1,2", "x,y,z,a", "\0", "1,t,%s,a" % ("9" * 5000), '"' + "x" * 200_000],
    ids=["a long field", "too few fields", "words", "a null", "a long number", "an open quote"],
)
def test_a_list_of_books_that_is_none(books, line):
    with (books / "metadata.csv").open("a") as file:
        file.write(line)
    with pytest.raises(StreamDataError, match=r"metadata.csv: is not PG-19's list of number, title, year, URL: "):
        build_books(books)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/nowhere", path)])
def test_a_book_that_is_no_file(books, make):
    (books / "train" / "101.txt").unlink()
    make(books / "train" / "101.txt")
    with pytest.raises(StreamDataError, match=r"train/101.txt: is not a regular file"):
        build_books(books)


@pytest.mark.parametrize("name", ["metadata.csv", "train/101.txt"])
def test_what_is_too_large_is_not_read(books, name):
    os.truncate(books / name, 1 << 40)
    with pytest.raises(StreamDataError, match=rf"{name}: cannot be read \(it has more than 268,435,456 bytes\)$"):
        build_books(books)


def test_an_archive_that_unpacks_without_end(tmp_path):
    """8 MB that hold 8 GB: unpacked as far as Fashion-MNIST's files go, and refused."""
    for name in FILES:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(1 << 20)) * 8000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StreamDataError, match=r"\.gz: is not the Fashion-MNIST file; expected unpacked contents"):
        build_stream("split_fashion_mnist", SplitOptions(data_dir=str(tmp_path)), seed=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in kB
    for name in FILES:
        os.truncate(tmp_path / f"{name}.gz", 1 << 40)
    with pytest.raises(StreamDataError, match=r"\.gz: cannot be read \(it has more than 67,108,864 bytes\)$"):
        build_stream("split_fashion_mnist", SplitOptions(data_dir=str(tmp_path)), seed=0)


def test_names_that_are_no_numbers_are_passed_over(books):
    (books / "train" / "².txt").write_text("")  # `isdigit` takes it for a number, and `int` does not
    assert build_books(books).name == "pg19"


@pytest.mark.parametrize("name", ["split_mnist", "split_fashion_mnist"])
def test_a_folder_that_cannot_be(name):
    with pytest.raises(StreamDataError, match=r"^data_dir: '~nobody-at-all/x' cannot be a path: "):
        build_stream(name, SplitOptions(data_dir="~nobody-at-all/x"), seed=0)


def test_text_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("~nobody-at-all/x", str(tmp_path / "pipe")):
        with pytest.raises(StreamDataError, match=r"^data: '"):
            build_stream("text", TextOptions(data=[path]), seed=0)
