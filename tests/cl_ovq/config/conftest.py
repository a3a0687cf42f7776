"""Files of configurations, and of parts of the user's own."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from forgetting import forgetting

from cl_ovq.imports import VARIABLE

sys.path.insert(0, str(Path(__file__).parent))  # for `config_helpers`: pytest imports test files by path

PAGE = Path(__file__).parents[3] / "docs" / "parts.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
MARK = """
from pathlib import Path

with Path(__file__).with_name("imported").open("a") as file:
    file.write("x")
"""
PARTS = "\n".join([*BLOCKS, MARK])
CONFIG = """
imports: [./parts.py]
stream: {name: pairs, pairs: 2}
model: {mixer: scale, scale: 0.5, width: 16, depth: 1, patch_size: 4}
strategy: {name: shrink, factor: 0.9, batch_size: 150}
tracking: {enabled: false}
figures: false
"""


@pytest.fixture
def write(tmp_path):
    """`write(content)`: the path of a file with a mapping as YAML, or with text or bytes as they are."""

    def write(content, name="experiment.yaml"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def forgotten(monkeypatch):
    """Parts of the user's own that a test enters are not known afterwards."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with forgetting():
        yield


@pytest.fixture
def lab(tmp_path, monkeypatch, forgotten):
    """The file and a configuration in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "own.yaml").write_text(CONFIG)
    return tmp_path
