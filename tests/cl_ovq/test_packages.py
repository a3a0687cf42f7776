"""A stranger's `kernels` or `streams` is refused before anything is computed with it."""

import os
import subprocess
import sys

import pytest


def import_platform(path):
    """Import cl_ovq in a new process whose import path begins with `path`."""
    return subprocess.run(
        [sys.executable, "-P", "-c", "import sys, cl_ovq; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)},
        cwd=path,
        check=False,
    )


@pytest.mark.parametrize("name", ["kernels", "streams"])
def test_package_of_another_distribution(tmp_path, name):
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    done = import_platform(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: cl_ovq needs its own package '{name}', but found another distribution's at "
        f"{package / '__init__.py'}: uninstall that distribution, or use a separate virtual environment"
    )


@pytest.mark.parametrize("name", ["kernels", "streams"])
def test_module_of_the_same_name(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("")
    assert f"needs its own package '{name}', but found another distribution's at" in import_platform(tmp_path).stderr


@pytest.mark.parametrize("name", ["kernels", "streams"])
def test_folder_of_the_same_name_hides_nothing_in_silence(tmp_path, name):
    # It stands before an editable install, but not before a regular one.
    (tmp_path / name).mkdir()
    done = import_platform(tmp_path)
    assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith(
        f"ImportError: cl_ovq needs its own package '{name}', but found another distribution's at {tmp_path / name}"
    )


def test_the_platforms_own_are_accepted_without_loading_torch(tmp_path):
    done = import_platform(tmp_path)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_what_runs_on_a_gpu_machine_needs_no_pydantic():
    """Such a machine has what models and kernels need, and nothing that reads results or checkpoints."""
    names = ["cl_ovq.mixers", "cl_ovq.models", "cl_ovq.training", "cl_ovq.paths"]
    names += [f"cl_ovq.benchmarks.gpu.{name}" for name in ("records", "report", "running", "training", "worker")]
    code = f"import sys; sys.modules['pydantic'] = None; import {', '.join(names)}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""
