"""Feature vectors of a user's own: every kind of file gives the rows that are in it, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch

from streams import StreamDataError, build_stream, rows_of, tables
from streams.features import FeatureOptions, load_features
from streams.shared_data import collecting

CLASSES = ("ant", "bee", "cow", "dog", "eel", "fox")
DOMAINS = ("field", "lab", "web")
N, F = 360, 5


@pytest.fixture(scope="module")
def data():
    """Vectors, labels and domains; a row's first feature is its number."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(N, F)).astype(np.float32)
    vectors[:, 0] = np.arange(N)
    return vectors, np.array(CLASSES)[random.integers(0, 6, N)], np.array(DOMAINS)[random.integers(0, 3, N)]


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """The same data as a file of every kind."""
    folder = tmp_path_factory.mktemp("features")
    vectors, labels, domains = data
    table = pd.DataFrame(vectors, columns=[f"f{i}" for i in range(F)])
    table["label"], table["domain"] = labels, domains
    table.to_csv(folder / "x.csv", index=False)
    table.to_csv(folder / "x.tsv.gz", index=False, sep="\t")
    table.to_parquet(folder / "x.parquet")
    lists = pd.DataFrame({"embedding": list(vectors), "label": labels, "domain": domains, "note": ["a"] * N})
    lists.to_parquet(folder / "lists.parquet")
    np.savez(folder / "x.npz", features=vectors, label=labels, domain=domains)
    np.save(folder / "x.npy", vectors)
    np.save(folder / "wide.npy", vectors.astype(np.float64))
    np.save(folder / "labels.npy", labels)
    (folder / "domains.txt").write_text("\n".join(domains) + "\n")
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cl-ovq" / "data"


def options(folder, name, **changes):
    if name.endswith(".npy"):
        changes = {"labels": str(folder / "labels.npy"), "domains": str(folder / "domains.txt"), **changes}
    if name == "lists.parquet":
        changes = {"columns": ["embedding"], **changes}
    return FeatureOptions(data=str(folder / name), **changes)


FILES = ("x.csv", "x.tsv.gz", "x.parquet", "lists.parquet", "x.npz", "x.npy", "wide.npy")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_the_rows_that_are_in_it(data, folder, name, cached):
    vectors, labels, domains = data
    for _ in range(2):  # as it was read, and out of the cache
        stream = build_stream("features", options(folder, name, cache=cached, scenario="domain_incremental"), seed=1)
        assert stream.samples.gather(torch.arange(N)).numpy().tobytes() == vectors.tobytes()
        assert [stream.class_names[label] for label in stream.samples.targets] == labels.tolist()
        assert stream.samples.sample_shape == (F,)
        image, label = stream.samples[7]
        assert (image.numpy() == vectors[7]).all()
        assert stream.class_names[label] == labels[7]
        seen = []
        for experiences in stream.benchmark.streams.values():
            for experience, domain in zip(experiences, DOMAINS, strict=True):
                rows = rows_of(experience.dataset).numpy()
                assert set(domains[rows]) == {domain}
                seen += rows.tolist()
        assert sorted(seen) == list(range(N))
        assert stream.provenance["domains"] == [[domain] for domain in DOMAINS]
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert stream.provenance["files"][name]["sha256"] == sha256
        assert stream.provenance["vector_shape"] == [F]
        json.dumps(stream.provenance)


def test_the_same_share_of_every_class_in_every_domain_is_held_out(data, folder):
    _, labels, domains = data
    wanted = options(folder, "x.csv", scenario="domain_incremental", test_fraction=0.3, validation_fraction=0.2)
    stream = build_stream("features", wanted, seed=0)
    test = torch.cat([rows_of(part.dataset) for part in stream.benchmark.streams["test"]]).numpy()
    validation = torch.cat([rows_of(part.dataset) for part in stream.benchmark.streams["validation"]]).numpy()
    for name in CLASSES:
        for domain in DOMAINS:
            pair = np.flatnonzero((labels == name) & (domains == domain))
            held = len(np.intersect1d(pair, test))
            assert held == max(1, round(0.3 * len(pair)))
            assert len(np.intersect1d(pair, validation)) == max(1, round(0.2 * (len(pair) - held)))
    other = build_stream("features", wanted, seed=5)
    assert other.provenance["split_sha256"] == stream.provenance["split_sha256"]


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental", "domain_incremental"])
def test_without_domains_a_stream_is_cut_by_class(data, folder, scenario):
    wanted = options(folder, "x.npy", domains=None, scenario=scenario, experiences=3, shuffle_classes=False)
    stream = build_stream("features", wanted, seed=0)
    assert stream.original_classes == ((0, 1), (2, 3), (4, 5))
    assert stream.n_classes == (2 if scenario == "domain_incremental" else 6)
    for number, experience in enumerate(stream.benchmark.streams["train"]):
        rows = rows_of(experience.dataset)
        assert set(data[1][rows.numpy()]) == set(CLASSES[2 * number : 2 * number + 2])
        assert set(experience.dataset.targets_task_labels) == {number if scenario == "task_incremental" else 0}


def test_domains_come_in_the_order_that_is_asked_for(folder):
    def order(**changes):
        wanted = options(folder, "x.csv", scenario="domain_incremental", **changes)
        return build_stream("features", wanted, seed=3).provenance["domains"]

    assert order(domain_order=["web", "field", "lab"]) == [["web"], ["field"], ["lab"]]
    assert order(experiences=2) == [["field", "lab"], ["web"]]
    assert order(shuffle_domains=True) == order(shuffle_domains=True)
    shuffled = {
        str(
            build_stream(
                "features", options(folder, "x.csv", scenario="domain_incremental", shuffle_domains=True), seed=s
            ).provenance["domains"]
        )
        for s in range(8)
    }
    assert len(shuffled) > 1


def test_a_test_file_is_the_test_stream(data, folder, tmp_path):
    vectors, labels, domains = data
    np.savez(tmp_path / "test.npz", features=vectors[:60] + 1000, label=labels[:60], domain=domains[:60])
    for scenario in ("class_incremental", "domain_incremental"):
        wanted = options(folder, "x.csv", test_data=str(tmp_path / "test.npz"), scenario=scenario)
        stream = build_stream("features", wanted, seed=0)
        rows = torch.cat([rows_of(part.dataset) for part in stream.benchmark.streams["test"]])
        found = stream.samples.gather(rows)
        assert sorted(found[:, 0].tolist()) == (np.arange(60) + 1000).tolist()
        assert stream.provenance["sizes"]["test"] == 60
        assert stream.provenance["sizes"]["train"] + stream.provenance["sizes"]["validation"] == N


def test_labels_that_are_numbers_are_sorted_as_numbers_and_can_be_named(tmp_path):
    labels = np.repeat([10, 2, -1], 20)
    np.savez(tmp_path / "x.npz", x=np.zeros((60, 2)), y=labels.astype(float))
    wanted = FeatureOptions(data=str(tmp_path / "x.npz"), experiences=3)
    assert build_stream("features", wanted, seed=0).class_names == ("-1", "2", "10")
    wanted.class_names = ["none", "two", "ten"]
    stream = build_stream("features", wanted, seed=0)
    assert [stream.class_names[label] for label in stream.samples.targets[::20]] == ["ten", "two", "none"]


def label_files(folder, labels):
    """The same labels in a file of every kind, each with what else `FeatureOptions` needs."""
    table = pd.DataFrame({"a": np.arange(len(labels)), "y": labels})
    table.to_csv(folder / "x.csv", index=False)
    table.to_csv(folder / "x.tsv", index=False, sep="\t")
    table.to_parquet(folder / "x.parquet")
    table.astype({"y": str}).to_parquet(folder / "text.parquet")
    np.savez(folder / "x.npz", x=np.zeros((len(labels), 1)), y=labels)
    np.save(folder / "x.npy", np.zeros((len(labels), 1), dtype=np.float32))
    np.save(folder / "labels.npy", labels)
    np.savetxt(folder / "labels.txt", labels)
    files = {name: {} for name in ("x.csv", "x.tsv", "x.parquet", "text.parquet", "x.npz")}
    return [
        *((str(folder / name), changes) for name, changes in files.items()),
        *((str(folder / "x.npy"), {"labels": str(folder / f"labels.{suffix}")}) for suffix in ("npy", "txt")),
    ]


def test_labels_that_are_whole_numbers_are_the_same_in_every_file(tmp_path):
    for data, changes in label_files(tmp_path, np.repeat([10.0, 2.0, -1.0, 3e15], 20)):
        found = load_features(FeatureOptions(data=data, **changes))
        assert found.class_names == ("-1", "2", "10", "3000000000000000"), data
        assert found.targets[::20].tolist() == [2, 1, 0, 3], data


@pytest.mark.parametrize("value", [0.5, np.inf, np.nan])
def test_labels_that_are_no_whole_numbers_are_refused_in_every_file(tmp_path, value):
    for data, changes in label_files(tmp_path, np.array([1.0, 2.0, value, 1.5])):
        with pytest.raises(StreamDataError, match=r"row 3: (.* is not a label|the label is missing)") as error:
            load_features(FeatureOptions(data=data, **changes))
        assert "\n" not in str(error.value)
        assert not np.isnan(value) or "missing" in str(error.value)


def test_the_row_of_a_label_is_counted_through_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 2)
    for labels, line in (
        (["x", "y", "x", ""], "x.csv: labels, row 4: the label is missing"),
        (["1", "2", "1", "2", "0.5"], "x.csv: labels, row 5: 0.5 is not a label: "),
        (["x", "y", "x", "nan"], "x.csv: labels, row 4: the label is missing"),
    ):
        (tmp_path / "x.csv").write_text("a,y\n" + "".join(f"1,{label}\n" for label in labels))
        with pytest.raises(StreamDataError, match=line):
            load_features(FeatureOptions(data=str(tmp_path / "x.csv")))


def test_numbers_among_names_are_names_and_domains_may_have_fractions(tmp_path):
    (tmp_path / "x.csv").write_text("a,y,domain\n" + "1,0.5,0.5\n1,1.0 mg,10.0\n1,0.5,2\n" * 9)
    found = load_features(FeatureOptions(data=str(tmp_path / "x.csv")))
    assert (found.class_names, found.domain_names) == (("0.5", "1.0 mg"), ("0.5", "2", "10"))
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1)), y=["a", "b", "b"], domain=[0.5, 2, 10])
    assert load_features(FeatureOptions(data=str(tmp_path / "x.npz"))).domain_names == ("0.5", "2", "10")


def test_half_precision_stays_as_it_lies(folder, tmp_path, data):
    np.save(tmp_path / "half.npy", data[0].astype(np.float16))
    wanted = FeatureOptions(data=str(tmp_path / "half.npy"), labels=str(folder / "labels.npy"))
    stream = build_stream("features", wanted, seed=0)
    assert stream.samples.sample_bytes == 2 * F
    expected = data[0].astype(np.float16).astype(np.float32)
    assert stream.samples.gather(torch.arange(N)).numpy().tobytes() == expected.tobytes()


def test_what_is_mapped_is_not_handed_over_in_memory(folder):
    """Other processes map the same file, and an object store would hold a second copy."""
    for name, shared in (("x.csv", False), ("x.npy", False), ("x.npz", True)):
        with collecting() as found:
            load_features(options(folder, name))
        assert bool(found) == shared, name
    with collecting() as found:
        load_features(options(folder, "x.csv", cache=False))
    assert found


def test_a_class_that_is_rare_in_its_domains_is_not_lost_from_training(tmp_path):
    labels = np.array(["common"] * 60 + ["rare"] * 3)
    domains = np.array(["a", "b", "c"] * 21)
    np.savez(tmp_path / "x.npz", x=np.zeros((63, 2)), y=labels, domain=domains)
    wanted = FeatureOptions(data=str(tmp_path / "x.npz"), scenario="domain_incremental")
    stream = build_stream("features", wanted, seed=0)
    counts = {
        name: sum((stream.samples.targets[rows_of(part.dataset)] == 1).sum().item() for part in parts)
        for name, parts in stream.benchmark.streams.items()
    }
    assert counts == {"train": 1, "validation": 1, "test": 1}


WRONG = "a,b,label\n1,2,x\n3,oops,y\n"


@pytest.mark.parametrize(
    ("content", "changes", "line"),
    [
        (WRONG, {}, "x.csv: column 'b' of row 2 is 'oops', which is not a number: exclude the column with `columns`"),
        ("a,b,label\n1,2,x\n3,,y\n", {}, "x.csv: column 'b' of row 2 is '', which is not a number"),
        ("a,b,label\n1,2,x\n3,nan,y\n", {}, "x.csv: column 'b' of row 2 is 'nan', which is not a number"),
        (
            "a,b,label\n1,2,x\n3,1e300,y\n",
            {"columns": ["b"]},
            "x.csv: column 'b' of row 2 is 1e\\+300, but must be finite in single precision",
        ),
        ("a,b,label\n1,2,x\n3,inf,y\n", {}, "x.csv: column 'b' of row 2 is inf, but must be finite"),
        ("a,b,label\n1,2,x\n3,4,\n", {}, "x.csv: labels, row 2: the label is missing"),
        ("a,b,label\n1,2,x\n3,4,y,5\n", {}, "x.csv: cannot be read as CSV: .* 3 fields in line 3, saw 4"),
        ("label,a\n" + "1,x,2\n2,y,3\n" * 9, {}, r"x.csv: rows have more fields than the header has names \(2\)"),
        ("a,b\n1,2\n", {}, "labels: .*x.csv: column with a default name .* not found: choose one of a, b"),
        ("a,b\n1,2\n", {"labels": "c"}, "labels: .*x.csv: column 'c' not found: known: a, b"),
        ("a,label\n1,2\n", {"labels": "lable"}, "column 'lable' not found: did you mean 'label'[?] known: a, label"),
        ("a,b,y\n1,2,x\n", {"columns": ["a", "z"]}, "columns: .*x.csv: column 'z' not found: known: a, b, y"),
        ("a,b,y\n1,2,x\n", {"domains": "d"}, "domains: .*x.csv: column 'd' not found"),
        ("a,b,y\n", {}, "x.csv: contains no samples"),
        ("y\n1\n2\n", {}, "columns: .*x.csv: no feature columns remain"),
        ("a,y\n1,1\n2,2\n", {"columns": []}, "columns: .*x.csv: no feature columns remain"),
        ("a,y\n1,1\n2,2\n", {"columns": ["a", "y"]}, "columns: .*x.csv: column 'y' contains the labels"),
        ("a,y\n1,1\n2,2\n", {"columns": ["a", "a"]}, "columns: .*x.csv: column 'a' is listed twice"),
        ("", {}, "x.csv: is empty"),
        ("a,a,y\n1,2,x\n", {}, "x.csv: duplicate column name 'a'"),
        ("a,label,label\n1,2,3\n", {}, "x.csv: duplicate column name 'label'"),
        ("a,y\n1,x\n", {}, r"x.csv: class 0 \('x'\) of experience 1 has no samples in the train stream"),
        ("a,y\n" + "1,x\n1,z\n" * 9, {"class_names": ["one"]}, "class_names: 1 names, but the data has 2 classes"),
        ("a,y\n" + "1,x\n1,z\n" * 9, {"experiences": 3}, "experiences=3: must be from 1 to 2"),
        ("a,y\n" + "1,x\n1,z\n" * 9, {"domain_order": ["a"]}, "domain_order: the data has no domains"),
        ("a,y\n" + "1,x\n1,z\n" * 9, {"test_labels": "t"}, "test_labels and test_domains: used only if test_data"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_what_is_wrong_with_a_table_is_told_in_a_line(tmp_path, cache, content, changes, line, cached):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(StreamDataError, match=line) as error:
        build_stream("features", FeatureOptions(data=str(tmp_path / "x.csv"), cache=cached, **changes), seed=0)
    assert "\n" not in str(error.value)
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        (
            {"x": np.zeros((4, 2, 2)), "y": np.arange(4)},
            r"array 'x': has shape \[4, 2, 2\], but must be \[samples, feat",
        ),
        ({"x": np.array([[1e300, -1e300]]), "y": np.arange(1)}, r"feature 1 of row 1 is 1e\+300, .* single precision"),
        ({"x": np.zeros((4, 2)), "y": np.arange(3)}, "array 'y' has 3 rows, but 'x' has 4"),
        (
            {"x": np.zeros((4, 2)), "y": np.arange(4) / 2},
            "labels, row 2: 0.5 is not a label: a class is a name",
        ),
        (
            {"x": np.zeros((4, 2)), "y": np.zeros((4, 2))},
            r"labels: has shape \[4, 2\]: it must contain one label per sample",
        ),
        ({"x": np.full((4, 2), "a"), "y": np.arange(4)}, "the features are <U1, not numbers"),
        (
            {"z": np.zeros((4, 2)), "y": np.arange(4)},
            "columns: .*: array with a default name .* not found: choose one of z",
        ),
        ({"x": np.zeros((4, 2)), "y": np.array([None] * 4)}, "cannot be read as .npz: Object arrays cannot be loaded"),
    ],
)
@pytest.mark.filterwarnings("error")  # a library's warning would be a second line
def test_what_is_wrong_with_arrays_is_told_in_a_line(tmp_path, arrays, line):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(StreamDataError, match=line) as error:
        build_stream("features", FeatureOptions(data=str(tmp_path / "x.npz")), seed=0)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_npy_file_is_told_in_a_line(tmp_path, folder):
    vectors = np.zeros((N, 2), dtype=np.float32)
    vectors[300, 1] = np.inf
    np.save(tmp_path / "x.npy", vectors)
    (tmp_path / "few.txt").write_text("a\nb\n")
    labels = str(folder / "labels.npy")
    for changes, line in (
        ({}, "labels: a .npy file contains no labels: give a label file"),
        ({"labels": str(tmp_path / "few.txt")}, "labels: 2 for 360 samples of "),
        ({"labels": str(tmp_path / "none.txt")}, "none.txt: cannot be read"),
        ({"labels": labels}, r"x.npy: feature 2 of row 301 is inf, but must be finite"),
        ({"labels": labels, "cache": False}, r"x.npy: feature 2 of row 301 is inf, but must be finite"),
        ({"labels": labels, "test_data": str(folder / "x.csv")}, "x.npy: feature 2 of row 301 is inf"),
    ):
        with pytest.raises(StreamDataError, match=line):
            build_stream("features", FeatureOptions(data=str(tmp_path / "x.npy"), **changes), seed=0)
    for data, line in (
        (None, "data: set a data file"),
        ("x.txt", "data: 'x.txt' has an unsupported format: supported: .npy, .npz"),
        ("missing.npy", "missing.npy: cannot be read"),
        ("missing.csv", "missing.csv: cannot be read"),
        ("~nobody-at-all/x.csv", "data: '~nobody-at-all/x.csv' cannot be a path"),
    ):
        with pytest.raises(StreamDataError, match=line):
            build_stream("features", FeatureOptions(data=data, labels=labels), seed=0)


def test_a_test_file_of_other_features_is_refused(folder, tmp_path, data):
    np.savez(tmp_path / "test.npz", x=np.zeros((9, 3)), y=data[1][:9], domain=data[2][:9])
    with pytest.raises(StreamDataError, match=r"test.npz: has 3 features, but .*x.csv has 5$"):
        build_stream("features", options(folder, "x.csv", test_data=str(tmp_path / "test.npz")), seed=0)
    np.savez(tmp_path / "test.npz", x=np.zeros((9, F)), y=data[1][:9])
    with pytest.raises(StreamDataError, match=r"^domains: only one of .*x.csv and .*test.npz has domains$"):
        build_stream("features", options(folder, "x.csv", test_data=str(tmp_path / "test.npz")), seed=0)


def test_blurred_boundaries_between_domains(folder, data):
    wanted = options(folder, "x.csv", scenario="domain_incremental", blur=0.5)
    parts = build_stream("features", wanted, seed=0).benchmark.streams["train"]
    found = [set(data[2][rows_of(part.dataset).numpy()]) for part in parts]
    assert found[0] == {"field", "lab"}
    wanted.domain_order = ["field", "lab"]
    with pytest.raises(StreamDataError, match="domain_order: must list each of these domains once: field, lab, web"):
        build_stream("features", wanted, seed=0)
