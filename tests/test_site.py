"""The documentation's site, as `make docs` builds it; warnings are errors there, broken links among them."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
for package in ("mkdocs", "mkdocstrings", "shadcn"):
    pytest.importorskip(package, reason="the extra `docs` is not installed")
# What a browser fetches by itself; an anchor is followed by the reader alone.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"((?:https?:)?//[^\"]*)\"|<link\b[^>]*\bhref=\"((?:https?:)?//[^\"]*)\""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_fetched_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    assert {
        (page.name, *found) for page in pages for found in FETCHED.findall(page.read_text(encoding="utf-8"))
    } == set()
    styles = "".join(path.read_text(encoding="utf-8", errors="replace") for path in site.rglob("*.css"))
    assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles)


def test_the_search_knows_pages_docstrings_and_keys(site):
    found = {
        entry["location"]: entry for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]
    }
    assert "metrics/#runs-that-diverge" in found
    assert "Raises" in found["reference/cl_ovq/#cl_ovq.api.run"]["text"]
    assert "strategy.buffer_size" in found["reference/parts/#replay"]["text"]
    assert "stream.blur" in found["reference/keys/#stream"]["text"]
    assert "dictionary_growth" in found["notebook/"]["text"]


@pytest.mark.parametrize("module", ["cl_ovq", "cl_ovq.avalanche", "kernels", "streams"])
def test_the_reference_has_every_public_name(module, site):
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").rglob("index.html"))
    anchors = {name.rpartition(".")[2] for name in re.findall(r'id="([\w.]+)"', pages)}
    assert set(import_module(module).__all__) - anchors == set()
