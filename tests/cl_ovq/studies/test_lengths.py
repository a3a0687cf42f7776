"""Rows of a study over the lengths and capacities that their runs were evaluated with."""

import json
from dataclasses import replace

import numpy as np
from study_helpers import run

from cl_ovq.studies.lengths import comparable_rows, comparable_tables

LENGTHS = """
title: Recall
seeds: 2
grids:
- task:
    recall: {{experiment: {recall}}}
  mixer:
    softmax: {{model.mixer: softmax}}
    OVQ: {{model.mixer: ovq, evaluation.capacities: [2, 8]}}
"""
RECALL = """
stream: {name: recall, experiences: 1, shift: none, length: 16, pairs: 2, keys: 8, values: 4, train: 30, test: 6}
model: {name: sequence_model, width: 8, depth: 1, heads: 1}
dictionary: {scope: sequence, capacity: 8, chunk_size: 4}
strategy: {batch_size: 10}
evaluation: {lengths: [16, 64], length_tokens: 640}
tracking: {enabled: false}
"""


def test_rows_over_length_are_means_over_seeds(tmp_path):
    (tmp_path / "recall.yaml").write_text(RECALL)
    (tmp_path / "lengths.yaml").write_text(LENGTHS.format(recall=tmp_path / "recall.yaml"))
    result, _ = run(tmp_path / "lengths.yaml", tmp_path / "runs")
    paths = result.write(tmp_path / "out")
    assert [path.name for path in paths] == [
        *("lengths.json", "lengths.md", "lengths.tex", "lengths.csv", "lengths_recall.csv"),
        *("lengths.png", "lengths_recall.png"),
    ]
    text = paths[1].read_text()
    assert "| recall: accuracy over tokens | 16 | 64 |" in text
    assert "Trained at 16 tokens." in text
    for row, name in zip(result.rows, ("softmax", "OVQ"), strict=True):
        values = [one.lengths[1]["value"] for one in row.runs]
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert line.split("|")[3].strip().startswith(f"{np.mean(values):.3f} +- ")
    saved = json.loads(paths[0].read_text())["rows"][1]["runs"][1]["lengths"]
    assert [(at["tokens"], at["value"]) for at in saved] == [
        (at["tokens"], at["value"]) for at in result.rows[1].runs[1].lengths
    ]
    with_capacities = result.rows[1].runs[1].capacities
    assert [record["value"] for record in json.loads(paths[0].read_text())["rows"][1]["runs"][1]["capacities"]] == [
        record["value"] for record in with_capacities
    ]
    table = text[text.index("| recall, OVQ: slots | accuracy at 16 tokens | accuracy at 64 tokens | state bytes |") :]
    for line, capacity in zip(table.splitlines()[2:], (2, 8), strict=True):
        found = [
            [record for record in one.capacities if (record["capacity"], record["tokens"]) == (capacity, 64)]
            for one in result.rows[1].runs
        ]
        mean = np.mean([record["value"] for (record,) in found])
        assert line.startswith(f"| {capacity} | ")
        assert line.split("|")[3].strip().startswith(f"{mean:.3f} +- ")
        assert line.split("|")[4].strip() == f"{found[0][0]['state_bytes']:,}"
    softmax, ovq = (row.runs[0].lengths for row in result.rows)
    assert softmax[1]["state_bytes"] > softmax[0]["state_bytes"]
    assert ovq[1]["state_bytes"] == ovq[0]["state_bytes"]
    for row in result.rows:  # as if they had been evaluated at one length each, and not at the same
        row.runs[:] = [replace(one, lengths=one.lengths[: 1 if row is result.rows[0] else 2]) for one in row.runs]
    groups = comparable_rows(result.rows)
    assert {name: [row.labels["mixer"] for row in rows] for name, rows in groups.items()} == {
        "recall_16": ["softmax"],
        "recall_16_64": ["OVQ"],
    }
    assert "| recall, softmax |" in comparable_tables(result.rows)["recall_16"].to_markdown()
    assert all(path.exists() for path in result.write(tmp_path / "apart"))
