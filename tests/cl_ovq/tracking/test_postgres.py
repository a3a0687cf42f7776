"""A run on a real PostgreSQL server: kept there, sent there later, and its password nowhere."""

import re
import traceback

import pytest
from mlflow import MlflowClient

from cl_ovq.errors import UserError
from cl_ovq.tracking.sync import sync

from .conftest import free_port

SECRETS = (b"hush hush", b"hush%20hush")


def test_run_is_kept_in_postgresql(postgres, run_in, tiny, tmp_path, capfd):
    config = tiny("tracking.enabled=true", f"tracking.uri={postgres}", "output_dir=out", "tracking.experiment=pg")
    result = run_in(tmp_path, config)
    assert result.run_id, capfd.readouterr().err
    run = MlflowClient(tracking_uri=postgres).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["forgetting"] == result.metrics["forgetting"]
    assert run.data.params["tracking.uri"].startswith("postgresql://keeper:***@127.0.0.1:")
    assert len(run.outputs.model_outputs) == 1
    assert run.info.artifact_uri.startswith((tmp_path / "runs" / "mlartifacts").as_uri())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in SECRETS), path
    assert b"***" in (tmp_path / "out" / "results.json").read_bytes()


def test_what_is_sent_later_takes_the_password_from_elsewhere(postgres, run_in, tiny, tmp_path, monkeypatch):
    port = free_port()
    down = postgres.replace(postgres.rpartition(":")[2].partition("/")[0], str(port))
    config = tiny("tracking.enabled=true", f"tracking.uri={down}", "output_dir=out", "tracking.experiment=later")
    assert run_in(tmp_path, config).run_id is None
    (journal,) = (tmp_path / "out").glob("tracking-*.jsonl")
    content = journal.read_bytes()
    assert not any(secret in content for secret in SECRETS)
    monkeypatch.setenv("PGPASSWORD", "hush hush")
    without = re.sub(r":[^:@]*@", "@", postgres)
    (found,) = sync(tmp_path, without, anyway=True)
    assert found.outcome == "sent", found
    assert MlflowClient(tracking_uri=postgres).get_run(found.run_id).info.status == "FINISHED"


def test_wrong_password_is_a_mistake_and_not_repeated(postgres, tiny, run_in, tmp_path):
    wrong = postgres.replace("hush%20hush", "guess%40ed")
    config = tiny("tracking.enabled=true", f"tracking.uri={wrong}", "output_dir=out")
    with pytest.raises(UserError, match=r"^tracking\.uri: .*keeper:\*\*\*@.*password authentication failed") as caught:
        run_in(tmp_path, config)
    text = "".join(traceback.format_exception(caught.value))
    assert "guess" not in text
    assert list(tmp_path.iterdir()) == []
