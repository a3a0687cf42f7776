"""YAML as people write it: values by type, and text as it was typed wherever the schema says text.

A reader that does not know the schema has to guess, and YAML guesses wrong: `2026_11_26` is a number, `12:30:45`
another, `695e0514` is infinite. So whoever reads a file or an override says which places hold text, as `IsText`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from cl_ovq.errors import UserError, first_line

Step = str | int  # a key of a mapping, or an index of a list
IsText = Callable[[Sequence[Step]], bool]

STR, NULL, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
NULLS = ("null", "Null", "NULL", "~")
MAXIMUM_NODES = 100_000  # of a document, each alias counted in full


def nowhere(path: Sequence[Step]) -> bool:
    """Stand for a file without a schema: no place holds text."""
    return False


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without YAML 1.1's traps: octal `010`, base-60 `12:30` and dates are text, `1e-3` is not."""


_NUMBERS = {
    "int": r"[-+]?(?:0|[1-9][0-9_]*)|[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+",
    "float": r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_replaced = {f"tag:yaml.org,2002:{name}" for name in (*_NUMBERS, "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _replaced]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


def read_yaml(source: Any, is_text: IsText = nowhere, path: Sequence[Step] = ()) -> Any:
    """Return the one document of a YAML source.

    Args:
        source: text or a file.
        is_text: whether a place holds text, where only quotes make a difference to what is typed: `null` without them
            is None. All keys of mappings are text.
        path: of the document itself.

    Raises:
        yaml.YAMLError: it is no YAML, or has duplicate keys, several documents, or aliases that expand without end.
        ValueError: a number has more digits than Python converts.
    """
    loader = _Loader(source)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(_Typed(is_text).copy(node, tuple(path)))
    finally:
        loader.dispose()


class _Typed:
    """Copies nodes with the tags that their places ask for: an alias may stand at places of different types."""

    def __init__(self, is_text: IsText) -> None:
        self.is_text = is_text
        self.nodes = 0
        self.above: list[yaml.Node] = []

    def copy(self, node: yaml.Node, path: tuple[Step, ...]) -> yaml.Node:
        """Return the copy of a node at a path."""
        self.nodes += 1
        if node in self.above or self.nodes > MAXIMUM_NODES:
            raise yaml.constructor.ConstructorError(None, None, "aliases expand without end", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            plain = node.style is None and node.tag != NULL
            return _tagged(node, STR if plain and self.is_text(path) else node.tag)
        self.above.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self._pairs(node, path)
        else:
            value = [self.copy(item, (*path, index)) for index, item in enumerate(node.value)]
        self.above.pop()
        return type(node)(node.tag, value, node.start_mark, node.end_mark)

    def _pairs(self, node: yaml.MappingNode, path: tuple[Step, ...]) -> list[tuple[yaml.Node, yaml.Node]]:
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        seen = set()
        for key, value in node.value:
            if key.tag == MERGE:
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                copies = [self.copy(item, path) for item in merged]
                pairs.append((key, yaml.SequenceNode(value.tag, copies, value.start_mark, value.end_mark)))
                continue
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while constructing a mapping",
                        node.start_mark,
                        f"found duplicate key {key.value}",
                        key.start_mark,
                    )
                seen.add(key.value)
                key = _tagged(key, STR)
            pairs.append((key, self.copy(value, (*path, key.value) if isinstance(key.value, str) else path)))
        return pairs


def _tagged(node: yaml.ScalarNode, tag: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(tag, node.value, node.start_mark, node.end_mark, node.style)


def read_override(override: str, example: str, is_text: IsText = nowhere) -> tuple[str, Any]:
    """Return key and value of `key=value`.

    Where the schema says text, everything after the first `=` is the value, as it stands; but `null` and `~` are None,
    and one pair of YAML's quotes around all of it is taken off. Any other value is read as YAML.

    Args:
        override: as typed.
        example: one that is right, for the message.
        is_text: whether a place holds text; the first step is the key as a whole.

    Raises:
        UserError: it is not of that form, has no value, or cannot be read.
    """
    if not is_unicode(override):
        raise UserError(f"cannot read the override '{shown(override)}': it is not valid UTF-8")
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override '{override}' is not of the form key=value, e.g. {example}")
    try:
        if not text.strip():
            raise UserError(
                f"override '{override}' has no value: write {key}=null for none, {key}=\"''\" for empty text"
            )
        # Of one name, an option may be a text of one part and a list of texts of another.
        if is_text((key,)) and not (text.startswith("[") and is_text((key, 0))):
            return key, None if text in NULLS else _unquoted(text)
        return key, read_yaml(text, is_text, (key,))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read the override '{override}': {yaml_line(error)}") from error


def _unquoted(text: str) -> str:
    """Take YAML's quotes off a text that stands in one pair of them as a whole."""
    if text[0] in "'\"":
        try:
            node = yaml.compose(text, _Loader)
        except yaml.YAMLError:
            return text
        if isinstance(node, yaml.ScalarNode) and (node.start_mark.index, node.end_mark.index) == (0, len(text)):
            return str(node.value)
    return text


def write_override(key: str, value: Any, is_text: IsText = nowhere) -> str:
    """Return the `key=value` that `read_override` reads as this key and value."""
    if isinstance(value, str):
        plain = f"{key}={value}"
        try:
            if read_override(plain, plain, is_text) == (key, value):
                return plain
        except UserError:
            pass
    style = '"' if isinstance(value, str) else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=float("inf"), sort_keys=False)
    return f"{key}=" + text.removesuffix("\n").removesuffix("\n...")


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: an argument that is not UTF-8 reaches Python as half of a character."""
    return not re.search("[\ud800-\udfff]", text)


def shown(text: str) -> str:
    """Return a text that can be printed anywhere: what is not valid UTF-8 in it is escaped."""
    return text.encode(errors="backslashreplace").decode()


def yaml_line(error: Exception) -> str:
    """Return what an error says in one line; of YAML's all lines joined, since the first says little."""
    if isinstance(error, yaml.YAMLError):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return first_line(error)
