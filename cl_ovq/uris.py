"""What may be shown and stored of an address: all but its secrets.

What is not known to be harmless counts as a secret: a driver may take a password under any name.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, unquote_plus, urlsplit

HIDDEN = "***"
SHORTEST = 6  # characters of what is remembered
# Options of an address whose values say nothing that nobody may know.
OPEN_OPTIONS = (
    *("application_name", "cache", "charset", "client_encoding", "connect_timeout", "dbname", "driver", "host"),
    *("hostaddr", "mode", "port", "sslmode", "target_session_attrs", "timeout", "uri", "user"),
)
OPEN_VALUE = re.compile(r"[\w.:/+ %-]*")
REFERENCE = re.compile(r"\$\{[^{}]*\}")  # stands for a secret, and is none
SCHEME = r"\b[a-z][a-z0-9+.-]*://"
# In a text: behind a quote or `=` up to the next quote; elsewhere up to a space, but not before its last `@`.
ADDRESS = re.compile(
    rf"(?<=['\"`=]){SCHEME}[^'\"`]*|{SCHEME}(?:.*@)?[^\s'\"`?;]*(?:[?;][^'\"`]*)?", re.IGNORECASE | re.DOTALL
)
WHOLE = re.compile(r"((?:[\w.-]+=)?)([a-z][a-z0-9+.-]*://.*)", re.IGNORECASE | re.DOTALL)

_remembered: set[str] = set()


def redact(uri: str) -> str:
    """Return an address without its password, its options' values, or the token that stands for a user and a password.

    One that can be read in more than one way, such as with a `/` or `?` in its password, is hidden but for its scheme.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return uri if "@" not in uri and "=" not in uri else HIDDEN
    parts = _split(uri)
    if parts is None:
        return f"{scheme}://{HIDDEN}" if set(uri) & set("@?;#=") else uri
    user, at, host = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    if colon:
        user = f"{name}:{_hidden(password)}"
    elif at and scheme.lower().startswith("http"):
        user = _hidden(user)
    path, semicolon, more = parts.path.partition(";")
    shown = f"{scheme}://{user}{at}{host}{path}{semicolon}{_hidden(more)}"
    if parts.query:
        shown += "?" + "&".join(_shown_option(option) for option in parts.query.split("&"))
    return shown + ("#" + _hidden(parts.fragment) if parts.fragment else "")


def redact_all(text: str) -> str:
    """Return a text with every address in it redacted, and without what `remember` was told."""
    for secret in sorted(_remembered, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if whole := WHOLE.fullmatch(text):  # an address, or an override with one: spaces and quotes do not end it
        return whole[1] + redact(whole[2])
    return ADDRESS.sub(lambda found: redact(found.group()), text)


def redact_tree(tree: Any) -> Any:
    """Return plain data with every address in its texts redacted: what of settings may be written or shown."""
    if isinstance(tree, dict):
        return {key: redact_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redact_tree(value) for value in tree]
    return redact_all(tree) if isinstance(tree, str) else tree


def remember(value: Any) -> None:
    """Take a value as a secret of this process, which no line that it prints shows; short ones could be any word."""
    if isinstance(value, str) and len(value) >= SHORTEST:
        _remembered.add(value)


def without_secrets(text: str, uri: str) -> str:
    """Return a message in one line, with the address's secrets taken out of it wherever they stand."""
    text = " ".join(text.split()).replace(uri, redact(uri))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        # A very short one, such as a user's name, is part of many a word: `u` of `out`.
        found = re.escape(secret) if len(secret) > 3 else rf"(?<!\w){re.escape(secret)}(?!\w)"
        text = re.sub(found, HIDDEN, text)
    return text


def _split(uri: str) -> SplitResult | None:
    """Return the parts of an address; None if it can be read in more than one way, or in none."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        return None
    rest = uri.partition("://")[2]
    if parts.netloc and "@" in rest[len(parts.netloc) :]:
        return None  # is what is before it a user, or a path?
    return parts


def _secrets(uri: str) -> set[str]:
    """Return what of an address is to be shown nowhere, as it stands and decoded."""
    parts = _split(uri)
    if parts is None or "://" not in uri:
        rest = uri.rpartition("://")[2] if set(uri) & set("@?;#=") else ""
        found = [rest.rpartition("@")[0], *re.split(r"[/@:?&=;#\s]+", rest)]
    else:
        user, at, _ = parts.netloc.rpartition("@")
        name, colon, password = user.partition(":")
        found = [password if colon else name if at and uri.lower().startswith("http") else ""]
        more = parts.path.partition(";")[2]
        found += [more, more.partition("=")[2], parts.fragment]
        for option in parts.query.split("&"):
            if _shown_option(option) == option:
                continue
            value = option.partition("=")[2] or option
            found.append(value)
            # As in ODBC's `Server=host;PWD=secret`.
            found += [pair.partition("=")[2] for pair in unquote_plus(value).split(";")]
    forms = {form for secret in found for form in (secret, unquote_plus(secret))}
    return {form for form in forms if form and form != HIDDEN and not REFERENCE.fullmatch(form)}


def _shown_option(option: str) -> str:
    name, equals, value = option.partition("=")
    if not equals:
        return _hidden(option)
    if name.lower() in OPEN_OPTIONS and OPEN_VALUE.fullmatch(value):
        return option
    return f"{name}={_hidden(value)}"


def _hidden(secret: str) -> str:
    return secret if not secret or REFERENCE.fullmatch(secret) else HIDDEN
