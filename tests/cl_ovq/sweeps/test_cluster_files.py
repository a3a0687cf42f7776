"""Cluster files, against Ray's own schema and the shell; what needs a cloud, a SLURM or a Kubernetes is not tried."""

import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[3] / "ray_configs" / "clusters"
ROOT = FOLDER.parents[1]


@pytest.mark.parametrize("name", ["aws", "onpremise"])
def test_ray_up_takes_the_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    config = prepare_config(config)
    validate_config(config)
    config["clustername"] = "misspelt"
    with pytest.raises(Exception, match="clustername"):
        validate_config(config)


def test_the_slurm_script_is_shell():
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)


@pytest.mark.filterwarnings("ignore")  # Ray's own, of its dashboard and server
def test_ray_has_the_command_that_the_slurm_script_uses():
    from click.testing import CliRunner
    from ray.scripts.scripts import cli

    shown = CliRunner().invoke(cli, ["symmetric-run", "--help"])
    assert shown.exit_code == 0
    script = (FOLDER / "slurm.sh").read_text()
    for option in ("--address", "--min-nodes"):
        assert option in script
        assert option in shown.output


def test_the_ray_job_has_what_kuberay_needs_and_this_version_of_ray():
    job = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    spec = job["spec"]
    known = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
    assert set(spec) == known
    cluster = spec["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert "rayStartParams" in group
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
