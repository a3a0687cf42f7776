"""Data sets of the `datasets` library: what its tables hold is what the stream holds, and what is wrong is named."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from streams import StreamDataError, build_stream
from streams.cache import in_memory
from streams.hf_dataset import HubOptions, HubSource, read_tables
from streams.image_files import Form

N = 60
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)
VECTORS = np.random.default_rng(1).normal(size=(N, 4)).astype(np.float32)
LABELS = np.arange(N) % 3
PLACES = [("indoor", "outdoor")[row // 3 % 2] for row in range(N)]
NAMES = ["cup", "apple", "bowl"]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def source(columns=(None, None, None), size=None):
    return HubSource("cups", None, None, ("train", None), columns, Form(size, 3, "crop"), False, None)


def read(*tables, columns=(None, None, None), class_names=None):
    """Read splits of Arrow tables, in batches of seven rows."""
    splits = [iter([table.slice(start, 7) for start in range(0, len(table), 7)]) for table in tables]
    sizes = [len(table) for table in tables]
    return in_memory(lambda sink: read_tables(source(columns), splits, sizes, class_names, sink))


def images(cells=None):
    return pa.table({"image": cells or [{"bytes": png(one), "path": None} for one in PIXELS], "label": LABELS})


def test_images_that_lie_in_the_table_or_in_files(tmp_path):
    cells = [{"bytes": png(one), "path": None} for one in PIXELS]
    for row in range(0, N, 2):
        path = tmp_path / f"{row}.png"
        path.write_bytes(cells[row]["bytes"])
        cells[row] = {"bytes": None, "path": str(path)}
    found = read(images(cells), class_names=NAMES)
    assert np.array_equal(found.inputs, PIXELS.transpose(0, 3, 1, 2))
    assert found.targets.tolist() == LABELS.tolist()
    assert (found.class_names, found.divisor, found.n_test) == (tuple(NAMES), 255.0, 0)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 4), pa.large_list(pa.float64())])
def test_vectors_with_domains_and_a_test_split(kind):
    column = pa.array(VECTORS.tolist(), type=kind)
    table = pa.table({"embedding": column, "kind": [NAMES[label] for label in LABELS], "domain": PLACES})
    found = read(table, table.slice(0, 10), columns=(None, "kind", None))
    assert np.array_equal(found.inputs, np.concatenate([VECTORS, VECTORS[:10]]))
    assert [found.class_names[label] for label in found.targets[:N]] == [NAMES[label] for label in LABELS]
    assert [found.domain_names[domain] for domain in found.domains[:N]] == PLACES
    assert (found.n_test, found.divisor) == (10, 1.0)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts(kind):
    texts = [f"cup {row}, größer" for row in range(N)]
    table = pa.table({"text": pa.array(texts).cast(kind), "label": LABELS})
    found = read(table, table.slice(0, 10), class_names=NAMES)
    samples = found.samples(found.targets)
    assert samples.texts(torch.arange(N + 10)) == texts + texts[:10]
    assert (found.n_test, found.class_names) == (10, tuple(NAMES))


def test_what_is_wrong_with_a_table_is_told_in_a_line():
    cells = [{"bytes": png(one), "path": None} for one in PIXELS]
    cells[20] = {"bytes": b"no image", "path": None}
    cells[40] = None
    ragged = pa.table({"x": [[1.0, 2.0]] * 8 + [[1.0]] * 8, "label": [0] * 16})
    flat = pa.table({"x": [[1.0, 2.0]] * 7 + [[1.0]] * 7, "label": [0] * 14})
    for table, columns, line in (
        (
            images(cells),
            (None, None, None),
            r"2 images cannot be used: column 'image', row 21: .*; column 'image', row 41",
        ),
        (images(), ("photo", None, None), "inputs: 'cups': column 'photo' not found: known: image, label"),
        (images(), ("label", None, None), "inputs: 'cups': column 'label' contains the labels"),
        (images(), (None, "kind", None), "labels: 'cups': column 'kind' not found"),
        (images(), (None, None, "where"), "domains: 'cups': column 'where' not found"),
        (ragged, (None, None, None), "'cups': column 'x' of row 9 has 1 numbers, but row 8 has 2"),
        (flat, (None, None, None), r"samples differ in shape: one is \[1\], others are \[2\]"),
        (pa.table({"x": [[1.0, None]], "label": [0]}), (None, None, None), "'cups': feature 2 of row 1 is nan"),
        (
            pa.table({"x": [b"a"], "label": [0]}),
            (None, None, None),
            "'cups': column 'x' contains binary, not numbers",
        ),
        (
            pa.table({"text": ["a", " "], "label": [0, 1]}),
            (None, None, None),
            "column 'text', row 2: the text is missing",
        ),
        (pa.table({"x": [[1.0]], "label": [None]}), (None, None, None), "column 'label', row 1: the label is missing"),
        (images().slice(0, 0), (None, None, None), "data: 'cups' contains no samples"),
    ):
        with pytest.raises(StreamDataError, match=line) as error:
            read(table, columns=columns)
        assert "\n" not in str(error.value)
    withheld = images().slice(0, 3).set_column(1, "label", [[-1, -1, -1]])
    with pytest.raises(StreamDataError, match=r"^'cups': the label -1 is not one of its 3 classes: -1 means a"):
        read(images(), withheld, class_names=NAMES)
    with pytest.raises(StreamDataError, match=r"^data: set a folder or file of a data set"):
        build_stream("hf_dataset", seed=0)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A data set with two splits, as the library saves it and as Parquet."""
    datasets = pytest.importorskip("datasets", reason="needs the package `datasets`")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub" / "datasets"))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "domain": datasets.Value("string")}
    )
    cells = [{"bytes": png(one), "path": None} for one in PIXELS]
    whole = datasets.Dataset.from_dict({"image": cells, "label": LABELS, "domain": PLACES}, features=features)
    parts = datasets.DatasetDict({"train": whole, "test": whole.select(range(12))})
    parts.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    for name, part in parts.items():
        part.to_parquet(str(tmp_path / "parquet" / f"{name}-00000.parquet"))
    return tmp_path


@pytest.mark.parametrize("name", ["saved", "parquet"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_data_set_on_disk(saved, name, cached):
    options = HubOptions(data=str(saved / name), size=None, scenario="domain_incremental", cache=cached)
    for _ in range(2):
        stream = build_stream("hf_dataset", options, seed=0)
        found = stream.samples.gather(torch.arange(N)) * 255
        assert np.array_equal(found.round().numpy(), PIXELS.transpose(0, 3, 1, 2))
        assert stream.provenance["sizes"]["test"] == 12
        assert stream.provenance["domains"] == [["indoor"], ["outdoor"]]
        assert stream.class_names == tuple(NAMES)
    options.test_split = "val"
    with pytest.raises(StreamDataError, match=r"test_split: '.*' has no split 'val': known: train, test"):
        build_stream("hf_dataset", options, seed=0)


def test_a_data_set_that_is_not_there_is_told_in_a_line(saved):
    (saved / "x.txt").write_text("")
    for name, line in (
        ("x.txt", "a file must be one of .parquet, .csv"),
        ("nothing/here", "cannot be read as a data set"),
    ):
        with pytest.raises(StreamDataError, match=line) as error:
            build_stream("hf_dataset", HubOptions(data=str(saved / name)), seed=0)
        assert "\n" not in str(error.value)


def test_the_library_is_asked_for_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        StreamDataError, match=r"^data: needs the package `datasets`: pip install 'cl-ovq\[datasets\]'$"
    ):
        build_stream("hf_dataset", HubOptions(data=str(tmp_path)), seed=0)
