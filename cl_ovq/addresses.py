"""What may be shown and stored of an address: all but its secrets."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
SECRETS = r"([?&;](?:password|passwd|sslpassword|token|secret)=)([^&;]*)"


def redact(uri: str) -> str:
    """Return an address without its password, or without the token that stands for a user and a password."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        if colon:
            user = f"{name}:{HIDDEN}"
        elif scheme.startswith("http"):
            user = HIDDEN
    hidden = f"{scheme}://{user}{at}{host}{slash}{path}"
    return re.sub(SECRETS, rf"\1{HIDDEN}", hidden, flags=re.I)


def without_secrets(text: str, uri: str) -> str:
    """Return a message in one line, with the address's secrets taken out of it wherever they stand."""
    text = " ".join(text.split()).replace(uri, redact(uri))
    user = urlsplit(uri).netloc.rpartition("@")[0]
    name, colon, password = user.partition(":")
    secrets = [password if colon else name if uri.startswith("http") else ""]
    secrets += [secret for _, secret in re.findall(SECRETS, uri, flags=re.I)]
    for secret in secrets:
        for form in {secret, unquote(secret)} - {""}:
            text = text.replace(form, HIDDEN)
    return text
