"""Permuted and rotated images, blurred boundaries, and the data sets that torchvision reads."""

import gzip
import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms.functional import InterpolationMode, rotate

from streams import StreamDataError, build_stream, rows_of
from streams.options import RotationOptions, SplitOptions, TransformOptions
from streams.transformed import rotations


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test reads the user's cache or reaches the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    for dataset in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        monkeypatch.setattr(dataset, "url", "http://127.0.0.1:1/cifar.tar.gz")


@pytest.fixture(scope="module")
def plain():
    return build_stream("split_digits", SplitOptions(experiences=1, shuffle_classes=False), seed=0)


def test_permuted_pixels_are_the_images_in_one_other_order_for_each_experience(plain):
    stream = build_stream("permuted_digits", TransformOptions(experiences=4), seed=0)
    count = len(plain.samples)
    assert len(stream.samples) == 4 * count
    whole = plain.samples.gather(torch.arange(count)).flatten(1)
    orders = set()
    for experience in range(4):
        seen = stream.samples.gather(torch.arange(count) + experience * count).flatten(1)
        order = stream.samples.maps[experience]
        assert sorted(order.tolist()) == list(range(64))
        assert torch.equal(seen, whole[:, order])
        orders.add(tuple(order.tolist()))
        if experience == 0:
            assert torch.equal(seen, whole)
    assert len(orders) == 4
    other = build_stream("permuted_digits", TransformOptions(experiences=4), seed=1)
    assert torch.equal(other.samples.maps[0], stream.samples.maps[0])
    assert not torch.equal(other.samples.maps[1], stream.samples.maps[1])


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 135.0, 200.0, 359.0])
@pytest.mark.parametrize("size", [8, 28, (5, 9)])
def test_rotations_are_torchvisions(degrees, size):
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.arange(1, height * width + 1).view(1, height, width).float()
    expected = rotate(image, degrees, InterpolationMode.NEAREST)
    where = torch.from_numpy(rotations(height, width, [degrees])[0])
    found = image.flatten()[where.clamp(min=0)].masked_fill(where < 0, 0).view_as(image)
    # Where a pixel comes from a place halfway between two, the two may choose another.
    assert (found != expected).float().mean() < (0.25 if degrees % 90 == 0 and height != width else 0.08)


def test_rotated_experiences_turn_evenly_and_items_are_gathered_rows():
    stream = build_stream("rotated_digits", RotationOptions(experiences=3, degrees=180), seed=0)
    first, last = (stream.samples.gather(torch.arange(1797) + e * 1797) for e in (0, 2))
    assert torch.equal(last, first.flip(2, 3))
    assert stream.experience_names() == [["0 degrees"], ["90 degrees"], ["180 degrees"]]
    for experience in range(3):
        for name, parts in stream.benchmark.streams.items():
            dataset = parts[experience].dataset
            rows = rows_of(dataset)
            assert (rows // 1797 == experience).all(), name
            x, y, task = dataset[3]
            assert torch.equal(x, stream.samples.gather(rows[3:4])[0])
            assert (y, task) == (stream.samples.targets[rows[3]], 0)


def test_every_experience_holds_out_the_same_images(plain):
    stream = build_stream("permuted_digits", TransformOptions(experiences=2), seed=0)
    for name in ("train", "validation", "test"):
        held = set(rows_of(plain.benchmark.streams[name][0].dataset).tolist())
        for part in stream.benchmark.streams[name]:
            assert set((rows_of(part.dataset) % 1797).tolist()) == held


def test_task_labels_tell_the_experience_and_do_not_go_with_blurred_boundaries():
    options = TransformOptions(experiences=2, scenario="task_incremental")
    stream = build_stream("permuted_digits", options, seed=0)
    assert [part.dataset[0][2] for part in stream.benchmark.streams["test"]] == [0, 1]
    for name, changes in (("permuted_digits", TransformOptions), ("split_digits", SplitOptions)):
        with pytest.raises(StreamDataError, match="blur: task labels mark sharp boundaries"):
            build_stream(name, changes(experiences=2, scenario="task_incremental", blur=0.2), seed=0)


def test_blurred_boundaries_of_classes():
    sharp, blurred, other = (
        build_stream("split_digits", SplitOptions(blur=blur), seed=seed) for blur, seed in ((0, 0), (0.3, 0), (0.3, 1))
    )
    for name in ("validation", "test"):
        for a, b in zip(sharp.benchmark.streams[name], blurred.benchmark.streams[name], strict=True):
            assert torch.equal(rows_of(a.dataset), rows_of(b.dataset))
    before, after = (
        [rows_of(part.dataset) for part in stream.benchmark.streams["train"]] for stream in (sharp, blurred)
    )
    assert [len(part) for part in before] == [len(part) for part in after]
    assert torch.equal(torch.cat(before).sort().values, torch.cat(after).sort().values)
    classes = [set(blurred.samples.targets[rows].tolist()) for rows in after]
    for experience, found in enumerate(classes):
        mine = set(sharp.classes_per_experience[experience])
        near = mine.union(*sharp.classes_per_experience[max(0, experience - 1) : experience + 2])
        assert mine < found <= near
    assert [rows_of(part.dataset).tolist() for part in other.benchmark.streams["train"]] != [
        rows.tolist() for rows in after
    ]


def write_mnist(root):
    """Five classes twice, in MNIST's form, as torchvision lays it out."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 60), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        arrays[name] = images, labels
        header = np.array([0x803, count, 28, 28], dtype=">u4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, count], dtype=">u4").tobytes() + labels.tobytes()
        )
    return arrays


def test_mnist_is_read_from_its_files(tmp_path):
    arrays = write_mnist(tmp_path)
    stream = build_stream("split_mnist", SplitOptions(experiences=2, data_dir=str(tmp_path)), seed=0)
    assert stream.provenance["source"] == "stream.data_dir"
    assert stream.provenance["sizes"]["test"] == 20
    assert stream.class_names == tuple("0123456789")
    images = np.concatenate([arrays["train"][0], arrays["t10k"][0]])
    np.testing.assert_array_equal(stream.samples.inputs[:, 0].numpy(), images)
    assert stream.provenance["files"]["images"]["sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    for name in ("permuted_mnist", "rotated_mnist"):
        options = (RotationOptions if "rotated" in name else TransformOptions)(experiences=2, data_dir=str(tmp_path))
        assert build_stream(name, options, seed=0).samples.sample_shape == (1, 28, 28)


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_cifar_is_read_from_its_files(name, classes, tmp_path, monkeypatch):
    dataset = getattr(torchvision.datasets, name)
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    expected, sums = [], {}
    key = "labels" if classes == 10 else "fine_labels"
    for file, _ in [*dataset.train_list, *dataset.test_list]:
        data = generator.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
        expected.append(data)
        content = pickle.dumps({"data": data, key: [i % classes for i in range(2 * classes)]})
        (folder / file).write_bytes(content)
        sums[file] = hashlib.md5(content).hexdigest()
    names = [f"class {number}" for number in range(classes)]
    content = pickle.dumps({dataset.meta["key"]: names})
    (folder / dataset.meta["filename"]).write_bytes(content)
    # Its checksums are those of the published files; these are as small as the test.
    monkeypatch.setattr(dataset, "train_list", [[file, sums[file]] for file, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [[file, sums[file]] for file, _ in dataset.test_list])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": hashlib.md5(content).hexdigest()})
    stream = build_stream(f"split_{name.lower()}", SplitOptions(experiences=5, data_dir=str(tmp_path)), seed=0)
    assert stream.samples.sample_shape == (3, 32, 32)
    assert stream.class_names == tuple(names)
    images = np.concatenate(expected).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(stream.samples.inputs.numpy(), images)
    (folder / dataset.train_list[0][0]).write_bytes(b"damaged")
    with pytest.raises(StreamDataError, match="was not found"):
        build_stream(f"split_{name.lower()}", SplitOptions(data_dir=str(tmp_path)), seed=0)


@pytest.mark.parametrize("name", ["split_mnist", "permuted_cifar10", "rotated_cifar100"])
def test_data_that_cannot_be_had_is_a_mistake_that_names_the_ways(name, tmp_path):
    options = {"split": SplitOptions, "permuted": TransformOptions, "rotated": RotationOptions}[name.split("_")[0]]
    with pytest.raises(StreamDataError) as error:
        build_stream(name, options(data_dir=str(tmp_path / "nothing")), seed=0)
    line = str(error.value)
    assert "was not found; two ways to provide it: set stream.data_dir to a folder with its files" in line
    assert "(tried: " in line
    assert "\n" not in line


def test_gzip_is_not_needed(tmp_path):
    """A packed file beside the plain one is left alone."""
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"not looked at"))
    assert build_stream("split_mnist", SplitOptions(data_dir=str(tmp_path)), seed=0).n_classes == 10
