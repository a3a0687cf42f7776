"""A built wheel works where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SOURCES = ("cl_ovq", "streams", "kernels", "experiments", "ray_configs", "pyproject.toml", "README.md", "LICENSE")


def python(*arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the wheel was installed, and an empty one beside it to work in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind
    source.mkdir()
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (CHECKOUT / name).exists():
            shutil.copy(CHECKOUT / name, source)
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source, folder=folder)
    (wheel,) = folder.glob("cl_ovq-*.whl")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", wheel, folder=folder)
    (folder / "elsewhere").mkdir()
    return folder / "site"


def cl_ovq(site, *arguments):
    # What is imported is the wheel's, though the environment may know the checkout as well.
    code = (
        "import sys, cl_ovq, kernels, streams\n"
        f"assert all(p.__file__.startswith({str(site)!r}) for p in (cl_ovq, kernels, streams)), cl_ovq.__file__\n"
        f"sys.argv = ['cl-ovq', *{list(map(str, arguments))!r}]\n"
        "from cl_ovq.cli import main\n"
        "main()\n"
    )
    folder = site.parent / "elsewhere"
    return python("-P", "-c", code, folder=folder, PYTHONPATH=str(site), COLUMNS="200")


@pytest.mark.parametrize("folder", ["experiments", "ray_configs"])
def test_what_a_command_names_is_installed(site, folder):
    def files(root):  # not what Python leaves beside a module that was imported
        return {path.relative_to(root) for path in root.rglob("*.*") if path.parent.name != "__pycache__"}

    assert files(site / "share" / "cl-ovq" / folder) == files(CHECKOUT / folder)


def test_experiments_studies_and_sweeps_are_listed(site):
    listed = cl_ovq(site, "list").stdout
    files = [*(CHECKOUT / "experiments").rglob("*.yaml"), *(CHECKOUT / "ray_configs").glob("*.yaml")]
    assert all(path.stem in listed for path in files)


def test_every_module_of_the_checkout_is_in_it(site):
    for package in ("cl_ovq", "streams", "kernels"):
        modules = {path.relative_to(CHECKOUT) for path in (CHECKOUT / package).rglob("*.py")}
        assert modules <= {path.relative_to(site) for path in (site / package).rglob("*.py")}


def test_a_run(site):
    tiny = ("stream.experiences=1", "model.width=8", "model.heads=2", "model.depth=1", "strategy.epochs=1")
    result = json.loads(cl_ovq(site, "run", "quickstart", *tiny, "tracking.enabled=false", "--json").stdout)
    assert result["provenance"]["code"] == {
        "version": result["provenance"]["code"]["version"],
        "revision": None,
        "dirty": None,
    }
    assert result["config"]["model"]["width"] == 8
    assert (site.parent / "elsewhere" / result["output_dir"] / "results.json").is_file()
