"""The secrets of a sweep's store are in no file of it, and in nothing that it prints."""

import os
import socket
import subprocess
import sys
from urllib.parse import quote

SECRETS = ("hu/sh@%1", "k3y-0f-th3-ap1")


def test_a_sweep_keeps_its_secrets(sweep_file, tmp_path):
    """Its server is down, so that all that MLflow would be told is in journals."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = quote(SECRETS[0], safe="")
    uri = f"http://me:{user}@127.0.0.1:{port}/path?api_key={SECRETS[1]}"
    path = sweep_file(
        set={"tracking.enabled": True, "tracking.uri": uri, "evaluation.dictionary_every": 100},
        space={"optimizer.learning_rate": {"choice": [1e-2]}},
        selection={"test_seeds": 1},
        cluster={"cpus": 1},
    )
    main = "from cl_ovq.cli import main; main()"
    command = [sys.executable, "-c", main, "sweep", str(path), f"tracking.uri={uri}", "--directory", "kept"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    wanted = [*SECRETS, user]
    assert not [secret for secret in wanted if secret in done.stdout + done.stderr]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"sweep.json", "sweep_results.json", "results.json", "config.yaml"} <= {file.name for file in files}
    assert any(file.suffix == ".jsonl" for file in files)
    leaks = {str(file) for file in files for secret in wanted if secret.encode() in file.read_bytes()}
    assert leaks == set()
