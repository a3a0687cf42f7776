"""Passwords in addresses are neither shown nor stored."""

import pytest

from cl_ovq.config import load_config, to_dict
from cl_ovq.errors import UserError
from cl_ovq.uris import redact, redact_tree, without_secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:hush@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg2://me:h%40sh@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("postgresql://me:hu@sh@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql://me@host/db?password=hush&sslmode=require",
            "postgresql://me@host/db?password=***&sslmode=require",
        ),
        ("https://token@host/path", "https://***@host/path"),
        ("https://me:hush@host", "https://me:***@host"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("databricks", "databricks"),
        ("postgresql://me:h%2Fu%40sh@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hu/sh@host/db", "postgresql://***"),
        ("postgresql://me:12/hush@host/db", "postgresql://***"),
        ("postgresql://me:hu?sh@host/db", "postgresql://***"),
        ("postgresql://me:hu#sh@host/db", "postgresql://***"),
        ("https://me:hu/sh@host", "https://***"),
        ("postgresql://me:hush@host:port/db", "postgresql://***"),
        ("https://host/path?api_key=hush", "https://host/path?api_key=***"),
        ("https://host/path?hush", "https://host/path?***"),
        ("https://host/path;jsessionid=hush", "https://host/path;***"),
        ("https://host/path#hush", "https://host/path#***"),
        ("postgresql://host/db?user=me@corp&password=hush", "postgresql://***"),
        ("postgresql://host/db?sslmode=require;password=hush", "postgresql://host/db?sslmode=***"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER={A b};UID=me;PWD=hush", "mssql+pyodbc:///?odbc_connect=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dhush", "mssql+pyodbc:///?odbc_connect=***"),
        ("mysql://me@host/db?ssl_key=hush&charset=utf8", "mysql://me@host/db?ssl_key=***&charset=utf8"),
        ("sqlite:////tmp/me@here/a.db?timeout=60", "sqlite:////tmp/me@here/a.db?timeout=60"),
        ("postgresql://me:${oc.env:PASSWORD}@host/db", "postgresql://me:${oc.env:PASSWORD}@host/db"),
        ("${oc.env:STORE}", "${oc.env:STORE}"),
        ("http://[::1", "http://[::1"),
        ("http://host:99999", "http://host:99999"),
        ("me:hush@host/db", "***"),
    ],
)
def test_redact(uri, shown):
    assert redact(uri) == shown
    assert redact(shown) == shown
    message = without_secrets(f"cannot connect\n to {uri} with hush or h@sh", uri)
    assert shown in message
    if shown != uri and "hush" in uri:
        assert "hush" not in message


def test_a_short_secret_does_not_eat_the_words_of_a_message():
    uri = "http://u:hush@host:99999"
    line = without_secrets("Port out of range: u, not u:hush, nor (u) or pwhush", uri)
    assert line == "Port out of range: ***, not ***, nor (***) or pw***"


@pytest.mark.parametrize(
    "before", ["", "no store ", "no store '", "override 'tracking.uri=", "trial with tracking.uri="]
)
@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hush@host/db",
        "postgresql://me:the hush@host/db",
        "postgresql://me:hu@the hush@host/db",
        "https://host/path?api_key=hush",
        "mssql+pyodbc:///?odbc_connect=DRIVER={A b};UID=me;PWD=hush",
    ],
)
def test_no_message_shows_a_secret(before, uri):
    message = str(UserError(f"{before}{uri}{chr(39) * before.count(chr(39))} and more"))
    assert "hush" not in message
    assert message.startswith(before + uri.partition("://")[0])
    assert redact_tree({"a": [f"{before}{uri}"]})["a"][0].count("hush") == 0


def test_configuration_is_stored_without_it(tiny_path):
    config = load_config(tiny_path, ["tracking.uri=postgresql://me:hush@host/db"])
    assert config.tracking.uri == "postgresql://me:hush@host/db"
    assert to_dict(config)["tracking"]["uri"] == "postgresql://me:***@host/db"
