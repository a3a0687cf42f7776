"""A run on a real MLflow server that keeps artifacts in S3, which moto serves in a process of its own."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from cl_ovq.models.saving import load_model
from cl_ovq.runs.result import Result
from cl_ovq.runs.setup import load_stream

from .conftest import free_port, serving

KEYS = {"AWS_ACCESS_KEY_ID": "keeper", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """What an MLflow server needs in its environment to keep artifacts in S3, and a client of the bucket `mlflow`."""
    missing = "S3's client is not installed: pip install 'cl-ovq[s3]'"
    boto3, botocore = (pytest.importorskip(name, reason=missing) for name in ("boto3", "botocore.exceptions"))
    pytest.importorskip("moto", reason="no S3 server is installed: pip install 'moto[s3]'")
    log, port = tmp_path_factory.mktemp("s3") / "log", free_port()
    with log.open("w") as file:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | KEYS)
    endpoint = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                client.create_bucket(Bucket="mlflow")
                break
            except botocore.EndpointConnectionError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield KEYS | {"MLFLOW_S3_ENDPOINT_URL": endpoint}, client
    finally:
        process.terminate()
        process.wait()


def test_results_and_model_are_kept_in_s3_and_read_back(bucket, store, run_in, tiny, tmp_path, monkeypatch):
    environment, client = bucket
    shutil.copy(store.removeprefix("sqlite:///"), tmp_path / "store.db")
    where = environment | {"MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/runs"}
    with serving(f"sqlite:///{tmp_path}/store.db", tmp_path, where) as address:
        (tmp_path / "work").mkdir()
        config = tiny(
            "tracking.enabled=true",
            f"tracking.uri={address}",
            "output_dir=out",
            "tracking.experiment=s3",
            "figures=true",
        )
        result = run_in(tmp_path / "work", config)  # without a key of S3: only the server has them
        mlflow_client = MlflowClient(tracking_uri=address)
        run = mlflow_client.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        found = mlflow_client.download_artifacts(result.run_id, "results.json", str(tmp_path))
        assert Result.read(Path(found)).metrics == result.metrics
        listed = {file.path for file in mlflow_client.list_artifacts(result.run_id)}
        assert {"results.json", "config.yaml", "matrix.png"} <= listed
        (logged,) = run.outputs.model_outputs
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        mlflow.set_tracking_uri(address)
        images = load_stream(config).samples.gather(torch.arange(5))
        answers = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(images.numpy())
        with torch.no_grad():
            expected = load_model(tmp_path / "work" / "out" / "model.pt").model.eval()(images).numpy()
        assert np.array_equal(answers, expected)
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(key.startswith("runs/") and key.endswith(f"{result.run_id}/artifacts/results.json") for key in keys)
    assert any(key.endswith("model.pt") for key in keys)
    kept = [path for path in tmp_path.rglob("results.json") if "work" not in path.parts]
    assert kept == [tmp_path / "results.json"]  # the one that was downloaded: the server has none on its disk
