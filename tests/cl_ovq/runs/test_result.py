"""What results say beyond what runs put into them."""

import dataclasses
import json

import pytest

from cl_ovq.comparison.figures import memory_figure
from cl_ovq.errors import UserError
from cl_ovq.mixers import dictionaries
from cl_ovq.report.runs import matrix_table
from cl_ovq.runs.groups import Group
from cl_ovq.runs.result import LABEL, VERSION, Result, carried_bytes
from cl_ovq.studies.tables import RowResult


def test_what_is_carried_from_task_to_task(run, session):
    shared = sum(d.state.nbytes for d in dictionaries(session().model).values())
    assert carried_bytes(run("strategy.name=naive")) == shared > 0
    assert carried_bytes(run("strategy.name=naive", "dictionary.scope=sequence")) == 0
    assert carried_bytes(run("strategy.name=naive", "model.mixer=softmax")) == 0
    assert carried_bytes(run("dictionary.scope=sequence")) == 20 * 64  # replayed digits of 8 x 8 pixels
    memory = run("strategy.name=naive", "model.head=memory", "dictionary.scope=sequence")
    assert carried_bytes(memory) == memory.dictionary["memory"]["bytes"] > 0
    both = run("strategy.name=naive", "model.head=memory")
    assert carried_bytes(both) == shared + memory.dictionary["memory"]["bytes"]
    alone = run("strategy.name=naive", "model.head=memory", "model.name=pixels")
    assert carried_bytes(alone) == alone.dictionary["bytes"] > 0
    assert alone.provenance["memory_bytes"] == carried_bytes(alone)


def test_bytes_that_are_unknown_are_no_bytes(run, tmp_path):
    """As of a strategy from outside that does not say what it keeps."""
    known = run("strategy.name=naive")
    provenance = known.provenance | {"method_bytes": None, "memory_bytes": None}
    unknown = dataclasses.replace(known, provenance=provenance, output_dir=str(tmp_path))
    assert carried_bytes(unknown) is None
    assert Result.read(unknown.write(tmp_path)) == unknown
    row = RowResult({}, {}, {}, [known, unknown])
    assert (row.mean(carried_bytes), RowResult({}, {}, {}, [known]).mean(carried_bytes)) == (None, carried_bytes(known))
    figure = memory_figure([Group("known", {0: known}), Group("unknown", {0: unknown})])
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [1, 0]


def test_a_field_of_older_results_has_its_present_name(run, tmp_path):
    older = json.loads(run().to_json())
    records = older["dictionary"]["slot_statistics"]
    older["dictionary"] = {
        "census" if name == "slot_statistics" else name: v for name, v in older["dictionary"].items()
    }
    (tmp_path / "results.json").write_text(json.dumps(older))
    assert Result.read(tmp_path).dictionary["slot_statistics"] == records != []


@pytest.mark.parametrize(
    ("experiences", "labels"),
    [
        ([["cat", "dog"], ["ox", "emu"]], ["cat, dog", "ox, emu"]),
        ([["c" * LABEL], ["c" * (LABEL + 1)]], ["c" * LABEL, ""]),
        ([["cat", "dog"], ["cat", "dog"]], ["", ""]),  # which does not tell one from the other
        ([], ["", ""]),
    ],
)
def test_short_names_label_experiences(run, experiences, labels):
    result = dataclasses.replace(run(), experiences=experiences)
    assert result.labels == labels
    note = matrix_table(result).note
    assert note == (f"Experiences: 1: {labels[0]}; 2: {labels[1]}." if all(labels) else "")


def test_results_without_what_experiences_hold_are_read(run, tmp_path):
    older = json.loads(run().to_json()) | {"version": 2}
    del older["experiences"]
    (tmp_path / "results.json").write_text(json.dumps(older))
    found = Result.read(tmp_path)
    assert (found.experiences, found.labels, found.version) == ([], ["", ""], VERSION)
    assert found.matrix == run().matrix


def test_results_are_read_as_they_were_written(run, tmp_path):
    result = dataclasses.replace(run(), output_dir=str(tmp_path))
    result.write(tmp_path)
    assert Result.read(tmp_path) == result
    assert Result.read(tmp_path / "results.json") == result
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Result.read(tmp_path / "nothing.json")
    (tmp_path / "results.json").write_text('{"matrix": []}')
    with pytest.raises(UserError, match="does not contain the results of a run"):
        Result.read(tmp_path)
