"""Names and paths that somebody else gave, in Markdown and LaTeX. Rich and HTML bring an `escape` of their own."""

from __future__ import annotations

import re

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*"},  # after `\\`, an option of it
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"},
}


def markdown(text: str) -> str:
    """Return a text as Markdown shows it, in one line, also in a table: without links, HTML or code of its own."""
    line = re.sub(r"([\\`*\[\]<>|~]|&(?=#?\w+;))", r"\\\1", " ".join(re.split(r"\r\n?|\n", text)))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # within a word it means nothing


def latex(text: str) -> str:
    """Return a text as LaTeX shows it, in one line, also in a table or a caption."""
    line = re.sub(r"[\x00-\x1f\x7f]", "", " ".join(text.split()))
    escaped = "".join(LATEX.get(character, character) for character in line)
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)  # no dashes or quotation marks of two


def code(text: str) -> str:
    """Return a text as code within a line of Markdown."""
    marks = "`" * (_longest(text) + 1)
    return f"{marks}{text}{marks}" if len(marks) == 1 else f"{marks} {text} {marks}"


def code_block(text: str) -> str:
    """Return a text as a block of code in Markdown."""
    marks = "`" * max(3, _longest(text) + 1)
    return f"{marks}\n{text}\n{marks}"


def _longest(text: str) -> int:
    """Return the length of the longest row of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
