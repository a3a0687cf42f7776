"""Pages of the site that are made when it is built: the notebook, every part and every key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from cl_ovq.cli.listing import KINDS, PARTS, options_of

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages (a hook of MkDocs)."""
    made = {"notebook.md": notebook(), "reference/parts.md": parts(), "reference/keys.md": keys()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def notebook() -> str:
    """Return the notebook as Markdown, with what its cells have shown."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    found = [f"This page is [a notebook]({NOTEBOOK.name}); the test suite runs it."]
    for cell in cells:
        text = "".join(cell["source"])
        found.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        found += [_shown(output["data"]) for output in cell.get("outputs", ())]
    heading = next(number for number, text in enumerate(found) if text.startswith("# "))
    return "\n\n".join([found.pop(heading), *found])


def _shown(data: dict[str, Any]) -> str:
    if "image/png" in data:
        return f"![A figure](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        return "\n".join(line.strip() for line in table.splitlines() if line.strip())
    return f"```text\n{''.join(data['text/plain'])}\n```"


def parts() -> str:
    """Return a page of all parts that a configuration can name, with the keys of each."""
    page = [
        "# Every part",
        "The output of `cl-ovq list KIND` and `cl-ovq list KIND NAME`, for every kind that has options.",
    ]
    for kind, registry in PARTS.items():
        page.append(f"## {kind.replace('_', ' ').capitalize()}")
        for name, part in registry.items():
            page += [f"### `{name}`", _prose(part.summary)]
            if options := options_of(kind, name):
                page.append(_table(options))
    return "\n\n".join(page)


def keys() -> str:
    """Return a page of all keys of an experiment, by section."""
    page = [
        "# Every key",
        "Every key of an [experiment](../files.md#an-experiment), as `cl-ovq list keys` prints them.",
    ]
    sections: dict[str, dict[str, str]] = {}
    for key, meaning in KINDS["keys"]().items():
        section, dot, _ = key.partition(".")
        sections.setdefault(section if dot else "the experiment itself", {})[key] = meaning
    for section, found in sections.items():
        page += [f"## {section.capitalize()}", _table(found)]
    return "\n\n".join(page)


def _table(rows: dict[str, str]) -> str:
    lines = [f"| `{key}` | {_prose(meaning)} |" for key, meaning in rows.items()]
    return "\n".join(["| key | meaning |", "| --- | --- |", *lines])


def _prose(text: str) -> str:
    """Return text with what means something in Markdown escaped, but for code."""
    pieces = re.split(r"(`[^`]*`)", text)
    escaped = [piece if number % 2 else re.sub(r"([<*_\[\]])", r"\\\1", piece) for number, piece in enumerate(pieces)]
    return "".join(escaped).replace("|", "\\|")
