"""Where Fashion-MNIST is found, how it is verified, and that it is read right (against torchvision's own reader)."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST
from torchvision.transforms.functional import to_tensor

from streams import SplitOptions, StreamDataError, build_stream, fashion_mnist, rows_of
from streams.fashion_mnist import FILES, TORCHVISION_SUBFOLDER, read_fashion_mnist

PACKAGE = fashion_mnist.DEBIAN_FOLDER
needs_package = pytest.mark.skipif(
    not all((PACKAGE / f"{name}.gz").is_file() for name in FILES),
    reason="the Debian package dataset-fashion-mnist is not installed",
)


@pytest.fixture(autouse=True)
def no_other_data(monkeypatch, tmp_path):
    """No test reads the user's cache or reaches the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:1/"])  # nothing listens on port 1


@pytest.fixture
def no_package(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "no package")


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory):
    """Root of torchvision's layout, with the package's files unpacked by torchvision's own means (the gzip module)."""
    root = tmp_path_factory.mktemp("torchvision")
    folder = root / TORCHVISION_SUBFOLDER
    folder.mkdir(parents=True)
    for name in FILES:
        with gzip.open(PACKAGE / f"{name}.gz") as packed, (folder / name).open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return root


def copy_package(folder: Path) -> Path:
    folder.mkdir()
    for name in FILES:
        shutil.copy(PACKAGE / f"{name}.gz", folder)
    return folder


@needs_package
def test_images_and_labels_are_what_torchvision_reads(unpacked):
    stream = build_stream("split_fashion_mnist", SplitOptions(experiences=3), seed=0)
    train, test = (FashionMNIST(unpacked, train=train) for train in (True, False))
    assert torch.equal(stream.samples.inputs[:, 0], torch.cat([train.data, test.data]))
    assert torch.equal(stream.samples.targets, torch.cat([train.targets, test.targets]))
    assert list(stream.class_names) == train.classes
    for row in (0, 1, 59_999):
        assert torch.equal(stream.samples[row][0], to_tensor(train[row][0]))
    assert torch.equal(stream.samples.gather(torch.tensor([69_999]))[0], to_tensor(test[9_999][0]))


@needs_package
def test_official_test_set_and_stratified_validation():
    stream = build_stream("split_fashion_mnist", SplitOptions(experiences=3), seed=0)
    rows = {
        name: torch.cat([rows_of(e.dataset) for e in experiences])
        for name, experiences in stream.benchmark.streams.items()
    }
    assert torch.equal(rows["test"].sort().values, torch.arange(60_000, 70_000))
    assert torch.equal(torch.cat([rows["train"], rows["validation"]]).sort().values, torch.arange(60_000))
    assert np.bincount(stream.samples.targets[rows["validation"]]).tolist() == [600] * 10
    assert stream.provenance["sizes"] == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert stream.provenance["image_shape"] == [1, 28, 28]
    assert stream.provenance["split_sha256"] == "1a87e02f8dd5784461d8bb21477574c2a8e53c4f5f067309fa0ab68e5db28637"


@needs_package
def test_package_is_found_by_itself():
    data = read_fashion_mnist()
    assert data.source == "Debian package dataset-fashion-mnist"
    assert set(data.files) == {f"{name}.gz" for name in FILES}
    for name, sums in data.files.items():
        assert sums["sha256"] == hashlib.sha256((PACKAGE / name).read_bytes()).hexdigest()
        assert sums["unpacked_sha256"] == FILES[name.removesuffix(".gz")]


@needs_package
def test_data_dir_comes_first_packed_or_not(unpacked, tmp_path):
    packed = read_fashion_mnist(str(copy_package(tmp_path / "packed")))
    in_torchvisions_layout = read_fashion_mnist(str(unpacked))
    plain = read_fashion_mnist(str(unpacked / TORCHVISION_SUBFOLDER))
    for data in (packed, in_torchvisions_layout, plain):
        assert data.source == "stream.data_dir"
        assert np.array_equal(data.inputs, packed.inputs)
        assert np.array_equal(data.targets, packed.targets)
    assert set(plain.files) == set(FILES)
    assert all(sums["sha256"] == sums["unpacked_sha256"] for sums in plain.files.values())


@needs_package
def test_a_data_dir_without_the_files_is_not_passed_over(tmp_path, monkeypatch):
    folder = copy_package(tmp_path / "incomplete")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()

    def offline(root):
        raise OSError("no network")

    monkeypatch.setattr(fashion_mnist, "_download", offline)
    with pytest.raises(StreamDataError, match=f"not all in {folder}.*no network"):
        read_fashion_mnist(str(folder))


@needs_package
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_archive_is_named(tmp_path, name):
    folder = copy_package(tmp_path / "damaged")
    path = folder / f"{name}.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(StreamDataError) as error:
        read_fashion_mnist(str(folder))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(error.value).startswith(f"{path}: is damaged")
    assert FILES[name] in str(error.value)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


@needs_package
def test_one_changed_pixel_is_found(unpacked, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(unpacked / TORCHVISION_SUBFOLDER, folder)
    path = folder / "train-images-idx3-ubyte"
    contents = bytearray(path.read_bytes())
    contents[1_000_000] ^= 1
    path.write_bytes(contents)
    with pytest.raises(StreamDataError) as error:
        read_fashion_mnist(str(folder))
    found = hashlib.sha256(contents).hexdigest()
    assert str(error.value) == (
        f"{path}: is not the Fashion-MNIST file; expected contents with sha256 {FILES[path.name]}, found {found}"
    )


def test_another_data_sets_files_are_refused(tmp_path):
    for name in FILES:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"MNIST"))
    with pytest.raises(StreamDataError, match="expected unpacked contents with sha256 c59f468a"):
        read_fashion_mnist(str(tmp_path))


@pytest.mark.parametrize("give_data_dir", [False, True])
def test_without_data_the_error_says_three_ways_at_once(no_package, tmp_path, give_data_dir):
    start = time.perf_counter()
    options = SplitOptions(data_dir=str(tmp_path / "empty") if give_data_dir else None)
    with pytest.raises(StreamDataError) as error:
        build_stream("split_fashion_mnist", options, seed=0)
    message = str(error.value)
    assert "\n" not in message
    for way in ("set stream.data_dir", "install the Debian package dataset-fashion-mnist", "torchvision to download"):
        assert way in message
    assert "refused" in message
    assert (str(tmp_path / "empty") in message) is give_data_dir
    assert time.perf_counter() - start < 60  # and no mirror is waited for


@pytest.fixture
def server(monkeypatch):
    """Serves the package's files on this machine, as torchvision's only mirror; yields the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(PACKAGE))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/"])
        yield asked
        httpd.shutdown()


@needs_package
@pytest.mark.parametrize("give_data_dir", [False, True])
def test_download(server, no_package, monkeypatch, tmp_path, capsys, give_data_dir):
    # The package's archives hold the same data as those that torchvision knows, packed anew.
    sums = [(name, hashlib.md5((PACKAGE / name).read_bytes()).hexdigest()) for name, _ in FashionMNIST.resources]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    root = tmp_path / ("data" if give_data_dir else "cache/cl-ovq")
    data_dir = str(root) if give_data_dir else None
    data = read_fashion_mnist(data_dir)
    assert data.source == "download"
    assert data.inputs.shape == (70_000, 1, 28, 28)
    assert capsys.readouterr().out == ""
    assert list(root.iterdir()) == [root / "FashionMNIST"]
    assert len(server) >= 4
    server.clear()
    again = read_fashion_mnist(data_dir)
    assert again.source == ("stream.data_dir" if give_data_dir else "download")
    assert server == []


@needs_package
def test_a_refused_download_leaves_nothing(server, no_package, tmp_path):
    """torchvision refuses the package's archives, whose MD5 sums are not the ones it knows."""
    with pytest.raises(StreamDataError, match=r"three ways .*\(tried: Error downloading .* corrupted\.\)$"):
        read_fashion_mnist()
    assert list((tmp_path / "cache/cl-ovq").iterdir()) == []


def test_torchvisions_files_are_ours():
    assert {name for name, _ in FashionMNIST.resources} == {f"{name}.gz" for name in FILES}


def test_idx_sizes_are_big_endian():
    header = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 1, 1])
    values = bytes(i % 251 for i in range(2 * 257))
    array = fashion_mnist._parse_idx(header + values)
    assert array.shape == (2, 257)
    assert array[1, 3] == 260 % 251
