"""Journals with anything changed in them: sent, or set aside in one line, and nothing from outside goes with them."""

import json

import pytest
from mutations import mutations

from cl_ovq.tracking.sync import sync

from .test_received import END, SECRET, begun, lines, metrics, write

PATH = "../secret"


def record_list(uri):
    return [
        begun(uri, "mutated"),
        {"kind": "parameters", "values": {"model.width": "8"}},
        {"kind": "tags", "values": {"b": "2"}},
        metrics(),
        {"kind": "file", "path": "results.json"},
        {"kind": "file", "path": PATH},
        {
            "kind": "input",
            "name": "d",
            "digest": "1",
            "source_type": "local",
            "source": {},
            "profile": {},
            "context": "x",
        },
        {"kind": "resume", "uri": uri},
        metrics(step=2),
        END,
    ]


@pytest.mark.parametrize(("count", "seed"), [(40, 0), pytest.param(400, 1, marks=pytest.mark.slow)])
def test_any_change_is_sent_or_set_aside(store, tmp_path, count, seed):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "secret").write_text(SECRET)
    content = {"records": record_list(store), "state": {"key": "0123456789abcdef" * 2, "offset": 0}}
    for number, (_, changed) in enumerate(mutations(content, count, seed)):
        changed = changed if isinstance(changed, dict) else {}
        records, state = changed.get("records"), changed.get("state")
        folder = tmp_path / "runs" / f"{number:03}"
        beside = json.dumps(state).encode() if number % 2 else None  # else one of its own
        write(folder, lines(*(records if isinstance(records, list) else [records])), beside)
        (folder / "results.json").write_text("{}")
    found = sync(tmp_path / "runs", store)
    assert len(found) == count
    assert {one.outcome for one in found} <= {"sent", "malformed", "kept"}
    assert not [one for one in found if "Traceback" in (one.reason or "") or "\n" in (one.reason or "")]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name == "secret"][1:]
