"""Texts of a user's own: every kind of file gives the texts that are in it, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json
import random

import pandas as pd
import pytest
import torch

from streams import StreamDataError, build_stream, rows_of
from streams.shared_data import collecting
from streams.text_classification import TextClassificationOptions, load_texts

CLASSES, DOMAINS, N = ("ant", "bee", "cow", "dog", "eel", "fox"), ("field", "web"), 240


def sentences():
    """Texts, labels and domains: quotes, commas, tabs, lines and letters of two to four bytes are in them."""
    draw = random.Random(0)
    pieces = ['said "yes"', "one, two", "a\ttab", "two\nlines", "Größe", "花", "🙂", "plain", "NA", "01"]
    texts = [f"{row} " + " ".join(draw.sample(pieces, draw.randint(0, 6))) for row in range(N)]
    return [text.strip() for text in texts], draw.choices(CLASSES, k=N), draw.choices(DOMAINS, k=N)


TEXTS, LABELS, PLACES = sentences()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same texts as a file of every kind, and as files of their own."""
    folder = tmp_path_factory.mktemp("texts")
    table = pd.DataFrame({"id": range(N), "text": TEXTS, "label": LABELS, "domain": PLACES})
    table.to_csv(folder / "x.csv", index=False)
    table.to_csv(folder / "x.tsv.gz", index=False, sep="\t")
    table.to_parquet(folder / "x.parquet")
    table.astype({"text": "category"}).to_parquet(folder / "category.parquet")
    table.to_json(folder / "x.jsonl", orient="records", lines=True)
    table.to_json(folder / "x.json.xz", orient="records", lines=True, force_ascii=False)
    for row in range(N):
        place = folder / "files" / PLACES[row] / LABELS[row]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:03d}.txt").write_bytes(TEXTS[row].encode())
        (place / "notes.md").write_text("passed over")
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cl-ovq" / "data"


def options(path, **changes):
    return TextClassificationOptions(data=str(path), **changes)


FILES = ("x.csv", "x.tsv.gz", "x.parquet", "category.parquet", "x.jsonl", "x.json.xz")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_the_texts_that_are_in_it(folder, name, cached):
    for _ in range(2):  # as it was read, and out of the cache
        chosen = options(folder / name, cache=cached, scenario="domain_incremental")
        stream = build_stream("text_classification", chosen, seed=1)
        assert stream.samples.texts(torch.arange(N)) == TEXTS
        assert [stream.class_names[label] for label in stream.samples.targets] == LABELS
        assert stream.samples[7] == (TEXTS[7], CLASSES.index(LABELS[7]))
        for number, experience in enumerate(stream.benchmark.streams["train"]):
            assert {PLACES[row] for row in rows_of(experience.dataset).tolist()} == {DOMAINS[number]}
        (file,) = stream.provenance["files"].values()
        assert file["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert not {"image_shape", "vector_shape"} & stream.provenance.keys()


@pytest.mark.parametrize("cached", [True, False])
def test_a_folder_of_files(folder, cached, tmp_path):
    data = load_texts(options(folder / "files", cache=cached))
    order = sorted(range(N), key=lambda row: (PLACES[row], LABELS[row], row))
    assert data.samples(data.targets).texts(torch.arange(N)) == [TEXTS[row] for row in order]
    assert [data.class_names[label] for label in data.targets] == [LABELS[row] for row in order]
    assert [data.domain_names[domain] for domain in data.domains] == [PLACES[row] for row in order]
    for part, row in (("train", 0), ("train", 1), ("test", 2)):
        place = tmp_path / "parts" / part / f"{row % 2}.50"  # named as it is, and no number
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row}.TXT").write_text(TEXTS[row])
    data = load_texts(options(tmp_path / "parts", cache=cached))
    assert (data.n_test, data.class_names, data.domains) == (1, ("0.50", "1.50"), None)
    assert data.samples(data.targets).texts(torch.arange(3)) == TEXTS[:3]


def test_bytes_checksums_and_sizes_are_of_the_texts(folder):
    samples = build_stream("text_classification", options(folder / "x.csv"), seed=0).samples
    rows = torch.tensor([5, 0, 9])
    padded = samples.gather(rows)
    assert [bytes(row.tolist()).rstrip(b"\0").decode() for row in padded] == [TEXTS[row] for row in rows]
    assert padded.shape == (3, max(len(TEXTS[row].encode()) for row in rows))
    total = sum(len(text.encode()) for text in TEXTS)
    assert total <= samples.sample_bytes * N < total + N
    same = build_stream("text_classification", options(folder / "x.parquet", cache=False), seed=4).samples
    assert samples.sha256() == same.sha256()
    ends = build_stream("text_classification", options(folder / "files"), seed=0).samples
    assert samples.sha256() != ends.sha256()


def test_other_columns_names_and_test_data(folder, tmp_path):
    table = pd.read_csv(folder / "x.csv", keep_default_na=False)
    table["kind"] = [CLASSES.index(label) for label in table["label"]]
    table[["text", "kind"]].rename(columns={"text": "body"}).to_csv(tmp_path / "a.csv", index=False)
    lines = [json.dumps({"kind": float(kind), "body": text}) for text, kind in zip(TEXTS, table["kind"], strict=True)]
    (tmp_path / "b.jsonl").write_text("\n\n".join(lines[:60]))
    chosen = options(
        tmp_path / "a.csv",
        test_data=str(tmp_path / "b.jsonl"),
        inputs="body",
        labels="kind",
        class_names=list(CLASSES),
        validation_fraction=0.2,
        experiences=3,
    )
    stream = build_stream("text_classification", chosen, seed=2)
    assert stream.provenance["sizes"]["test"] == 60
    assert stream.samples.texts(torch.arange(N, N + 60)) == TEXTS[:60]
    assert stream.class_names == CLASSES
    seen = {stream.class_names[label] for label in stream.original_classes[0]}
    rows = rows_of(stream.benchmark.streams["test"][0].dataset)
    assert {LABELS[row - N] for row in rows.tolist()} == seen


def test_texts_are_handed_over_to_other_processes(folder):
    with collecting() as found:
        load_texts(options(folder / "x.csv", cache=False))
    (data,) = found.values()
    assert data.samples(data.targets).texts(torch.tensor([N - 1])) == TEXTS[-1:]


def test_what_is_wrong_is_told_in_a_line(folder, tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    pd.DataFrame({"text": [1, 2], "label": ["a", "b"]}).to_parquet(tmp_path / "numbers.parquet")
    write("mixed/a/one.txt", "x")
    write("mixed/b/c/two.txt", "x")
    write("blank/a/one.txt", " \n")
    write("binary/a/one.txt", b"\xff\xfe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.docx").touch()
    head = "text,label\n"
    for path, changes, line in (
        (
            tmp_path / "x.docx",
            {},
            "data: '.*x.docx' has an unsupported format: supported: .csv, .tsv, .jsonl, .ndjson, .json, .pa",
        ),
        (tmp_path / "none.csv", {}, r"none\.csv: cannot be read"),
        (folder / "x.csv", {"inputs": "txt"}, "inputs: .*'txt' not found: did you mean 'text'[?] known: id, text"),
        (folder / "x.csv", {"inputs": "label"}, "inputs: .*column 'label' contains the labels"),
        (folder / "x.csv", {"inputs": "domain"}, "inputs: .*column 'domain' contains the domains"),
        (folder / "x.csv", {"labels": "kind"}, "labels: .*column 'kind' not found"),
        (folder / "files", {"labels": "kind"}, "inputs, labels and domains: name table columns"),
        (folder / "x.csv", {"class_names": ["a"]}, "class_names: 1 names, but the data has 6 classes"),
        (write("a.csv", "body,label\nx,a\n"), {}, r"inputs: .*column with a default name \(text, "),
        (write("b.csv", head + "x,a\n ,b\n"), {}, r"b\.csv: column 'text', row 2: the text is missing"),
        (write("c.csv", head + "x,a\ny,\n"), {}, r"c\.csv: column 'label', row 2: the label is missing"),
        (write("d.csv", head), {}, r"d\.csv: contains no texts"),
        (write("e.csv", head.encode() + b"\xff\xfe,a\n"), {}, r"e\.csv: is not valid UTF-8"),
        (write("f.csv", head + "x,a,b,c\n"), {}, r"rows have more fields than the header has names"),
        (
            write("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"\n'),
            {},
            r"a\.jsonl, line 2: is not valid JSON",
        ),
        (
            write("b.jsonl", '[{"text": "x", "label": 1}]'),
            {},
            r"b\.jsonl, line 1: is not a JSON object: each line must",
        ),
        (
            write("c.jsonl", '{"text": "x", "label": 1}\n{"text": 3, "label": 1}'),
            {},
            "line 2: 'text' is 3, but must be t",
        ),
        (
            write("d.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}'),
            {},
            "line 2: 'label' is missing, but must be text",
        ),
        (
            write("e.jsonl", '{"text": "\\ud800", "label": 1}'),
            {},
            r"row 1: the text is not valid Unicode: surrogates",
        ),
        (write("f.jsonl", b"\xff"), {}, r"f\.jsonl: cannot be read as JSON lines: 'utf-8' codec"),
        (write("g.jsonl.gz", "no gzip"), {}, r"g\.jsonl\.gz: cannot be read as JSON lines: Not a gzipped file"),
        (tmp_path / "numbers.parquet", {}, "inputs: .*column 'text' contains int64, not text"),
        (write("a.parquet", "no"), {}, r"a\.parquet: cannot be read as Parquet"),
        (tmp_path / "empty", {}, r"data: '.*empty' contains no texts \(\.text, \.txt\)"),
        (tmp_path / "mixed", {}, "texts of '.*' must all be in class/ or all in domain/class/"),
        (tmp_path / "blank", {}, r"blank/a/one\.txt: the text is missing"),
        (tmp_path / "binary", {}, r"one\.txt: is not valid UTF-8: invalid start byte at byte 0"),
        (folder / "x.csv", {"test_data": str(write("t.csv", head + "x,ant\n"))}, "domains: only one of .* has domains"),
    ):
        with pytest.raises(StreamDataError, match=line) as error:
            load_texts(options(path, **changes))
        assert "\n" not in str(error.value)
    with pytest.raises(StreamDataError, match=r"^data: set a text file"):
        build_stream("text_classification", seed=0)
