"""Code revision, memory and packages, on a real repository and real allocations."""

import mmap
import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

import cl_ovq
from cl_ovq.runs.provenance import code_revision, device_name, package_versions, peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
CHECKOUT = Path(__file__).parents[3]
MIB = 2**20


def git(folder, *arguments):
    identity = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, env=os.environ | identity
    ).stdout.strip()


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="not a git checkout")
def test_revision_of_this_checkout():
    found = code_revision()
    assert found["revision"] == git(CHECKOUT, "rev-parse", "HEAD")
    assert len(found["revision"]) == 40
    assert found["version"] == cl_ovq.__version__ == metadata.version("cl-ovq")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository that the platform believes to be its own."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "cl_ovq").mkdir()
    (tmp_path / "cl_ovq" / "__init__.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    monkeypatch.setattr(cl_ovq, "__file__", str(tmp_path / "cl_ovq" / "__init__.py"))
    return tmp_path


def test_clean_and_dirty(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert code_revision() == {"version": cl_ovq.__version__, "revision": head, "dirty": False}
    (repository / "cl_ovq" / "__init__.py").write_text("x = 1\n")
    assert code_revision()["dirty"] is True
    git(repository, "commit", "--quiet", "--all", "--message", "two")
    assert code_revision() == {
        "version": cl_ovq.__version__,
        "revision": git(repository, "rev-parse", "HEAD"),
        "dirty": False,
    }
    assert code_revision()["revision"] != head
    (repository / "new.py").write_text("")
    assert code_revision()["dirty"] is True


def test_without_a_repository_there_is_no_revision(repository):
    shutil.rmtree(repository / ".git")
    assert code_revision() == {"version": cl_ovq.__version__, "revision": None, "dirty": None}


def test_where_git_does_not_answer_nothing_is_claimed(repository):
    (repository / ".git" / "HEAD").write_text("damaged")
    assert code_revision() == {"version": cl_ovq.__version__, "revision": None, "dirty": None}


def hold_and_release(mebibytes):
    """Fill new memory and give it back: a tensor may be given what the process has freed but the C library holds."""
    with mmap.mmap(-1, mebibytes * MIB) as block:
        for _ in range(mebibytes):
            block.write(bytes(MIB))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_counts_what_is_gone_and_is_reset():
    for attempt in range(5):  # a system that runs short takes cold pages away, at any moment
        reset_peak_memory(CPU)
        before = peak_memory_bytes(CPU)
        hold_and_release(200)
        after = peak_memory_bytes(CPU)
        if 190 * MIB < after - before < 260 * MIB:
            break
        assert attempt < 4, (before, after)
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < after - 150 * MIB


def test_a_runs_peak_memory_is_its_own(run):
    run()  # what has to be imported is there now
    hold_and_release(300)
    held = peak_memory_bytes(CPU)
    assert run("tracking.run_name=memory").provenance["peak_memory_bytes"] < held - 100 * MIB


def test_packages_and_device():
    versions = package_versions()
    assert versions["torch"] == metadata.version("torch")
    assert {"python", "torch", "avalanche-lib", "mlflow", "omegaconf", "numpy"} <= set(versions)
    assert device_name(CPU).endswith(f" CPU, {torch.get_num_threads()} threads")
