"""Links between pages, as GitHub follows them: files, images and headings are there. Nothing is fetched."""

import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").glob("*.ipynb"))]
FENCE = re.compile(r"^```.*?^```\s*?$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
SOMEWHERE_ELSE = ("https://", "http://", "mailto:")


def prose(page):
    """The text of a page without its code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = FENCE.sub("", text)
    return re.sub(r"(?m)^    .*$", "", text)


def links(text):
    return LINK.findall(re.sub(r"`[^`]*`", "code", text))


def anchors(text):
    """The anchors that GitHub gives to a page's headings."""
    found = Counter()
    for heading in re.findall(r"(?m)^#+ +(.*?) *#*$", text):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[name] += 1
        if found[name] > 1:
            found[f"{name}-{found[name] - 1}"] += 1
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    wrong = []
    for link in links(prose(page)):
        if link.startswith(SOMEWHERE_ELSE):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and anchor not in anchors(prose(target)):
            wrong.append(f"{link}: there is no such heading")
    assert not wrong


def test_what_is_a_link_and_an_anchor():
    """By examples of GitHub's own documentation, since all of the above would pass if nothing were found."""
    text = "see [a `b` c](x.md#y), ![z](z.png) and [none] (w.md) or `[code](v.md)`, [![badge](u.svg)](t.md)"
    assert links(text) == ["x.md#y", "z.png", "t.md"]
    assert anchors("# Sample Section\n## This'll be a _Helpful_ Section About Δ!\n## a `x.y`: b\n# Sample Section") == {
        "sample-section",
        "thisll-be-a-_helpful_-section-about-δ",
        "a-xy-b",
        "sample-section-1",
    }
    assert sum(len(links(prose(page))) for page in PAGES) > 200


def test_every_page_is_in_the_navigation():
    """What `mkdocs build` checks too, where it is installed."""
    listed = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    made = {"notebook.md", "reference/parts.md", "reference/keys.md"}  # by docs/generated.py
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == there | made
    assert len(listed) == len(set(listed))


def test_every_target_of_make_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([\w-]+):", makefile))
    named = {
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"(?:^ *|`)make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 10
    assert {(page, target) for page, target in named if target not in targets} == set()
