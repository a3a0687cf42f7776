"""Tutorials, followed as a reader does: in an empty folder, files, code and commands in turn."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_documented_commands import arguments, written

TUTORIALS = Path(__file__).parents[3] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(python|bash|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def follow(call, tmp_path, monkeypatch, forgotten):
    """`follow(page, run)`: go through a page, and return how many blocks and commands were run.

    `run(*arguments)` calls a command in place of this process.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def follow(page, run=call):
        written(TUTORIALS / page, tmp_path)
        names, followed = {"__name__": "page"}, 0
        for kind, block in BLOCK.findall((TUTORIALS / page).read_text(encoding="utf-8")):
            if re.match(r"# \w+\.(py|yaml)\n", block):
                continue
            if kind == "python":
                exec(compile(block, page, "exec"), names)
                followed += 1
            else:
                assert kind == "bash"
                for command in arguments(block, tmp_path):
                    code, shown, said = run(*command)
                    assert code == 0, f"{command}: {shown[-2000:]}{said[-2000:]}"
                    followed += 1
        return followed

    yield follow
    sys.modules.pop("nets", None)


@pytest.mark.parametrize("page", ["own_data.md", "encoder.md", "own_method.md"])
def test_a_tutorial(page, follow):
    assert follow(page) > 2


def in_a_process(*arguments):
    """As `call`: a process connects to one cluster."""
    done = subprocess.run([sys.executable, "-m", "cl_ovq", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_sweep_on_a_cluster(follow, tmp_path, monkeypatch):
    """`ray start --head` on a port of its own; `auto` finds it by the environment."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        assert follow("cluster.md", in_a_process) > 2
    finally:
        cluster.shutdown()


def test_no_tutorial_is_left_out():
    assert {path.name for path in TUTORIALS.glob("*.md")} == {
        "own_data.md",
        "encoder.md",
        "own_method.md",
        "cluster.md",
    }
