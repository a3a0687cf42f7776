"""Passwords in addresses are neither shown nor stored."""

import pytest

from cl_ovq.addresses import redact, without_secrets
from cl_ovq.config import load_config, to_dict


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
    ],
)
def test_redact(uri, shown):
    assert redact(uri) == shown
    assert redact(shown) == shown
    message = without_secrets(f"cannot connect\n to {uri} with hush or h@sh", uri)
    assert shown in message
    if shown != uri and "hush" in uri:
        assert "hush" not in message


def test_configuration_is_stored_without_it(tiny_path):
    config = load_config(tiny_path, ["tracking.uri=postgresql://me:hush@host/db"])
    assert config.tracking.uri == "postgresql://me:hush@host/db"
    assert to_dict(config)["tracking"]["uri"] == "postgresql://me:***@host/db"
