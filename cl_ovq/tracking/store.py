"""MLflow's stores: the default one, how one is opened, and what of its address may be shown."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from cl_ovq.errors import UserError
from cl_ovq.uris import redact, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS = Path("runs")
SQLITE = "sqlite:///"
CANNOT_OPEN = "tracking.uri: cannot open the store"
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
MISTAKES = ("authentication failed", "does not exist", "no password supplied", "Access denied", "Unknown database")
WEB = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
REACHING_SECONDS = 5.0


class StoreDown(Exception):
    """A store on another machine or in another process does not answer; it may later."""


def default_uri() -> str:
    """Return the store that is used when none is configured: a SQLite file under `runs/` in the working directory."""
    return sqlite_uri(RUNS.resolve() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """Return the address of a SQLite file by its absolute path.

    An address is decoded and may end in options, so `?`, `#` and `%` in a path are quoted; then slashes are quoted too,
    since MLflow takes an address as it stands for a path, and makes the folders to it.
    """
    text = str(path)
    return (
        f"{SQLITE}{path.anchor}{quote(text.removeprefix(path.anchor), safe='')}"
        if set(text) & set("?#%")
        else f"{SQLITE}{text}"
    )


def sqlite_path(uri: str) -> Path:
    """Return the path of a SQLite file by its address."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def absolute_uri(uri: str | None) -> str:
    """Return the address of a store as it is from any working directory; the default one for None."""
    if uri is None:
        return default_uri()
    if uri.startswith(SQLITE):
        _, question, options = uri.partition("?")
        return sqlite_uri(sqlite_path(uri).expanduser().resolve()) + question + options
    return uri


def check_address(uri: str | None) -> None:
    """Refuse an address that no store can ever be opened at: MLflow itself would go on trying for minutes.

    Raises:
        UserError: saying what is wrong with it.
    """
    if uri is None:
        uri = default_uri()
    wrong = _wrong_file(uri) if uri.startswith(SQLITE) else _wrong_address(uri)
    if wrong is not None:
        raise UserError(f"{CANNOT_OPEN} '{redact(uri)}': {wrong}")


def _wrong_address(uri: str) -> str | None:
    """Return what is wrong with the address of a server; None if nothing is that can be seen."""
    scheme, colon, path = uri.partition(":")
    if not colon:
        return None if uri == "databricks" else f"it is not a URL: write {SQLITE}{redact(uri)} for a SQLite file"
    if scheme.partition("+")[0] == "sqlite":
        return f"write {SQLITE}{path.lstrip('/').partition('?')[0]}, with three slashes"
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        return without_secrets(str(error), uri)
    if scheme in WEB and not re.fullmatch(r"[\w.:%-]+", parts.hostname or ""):
        return f"it names no server: write {scheme}://HOST:PORT"
    return "port 0 is none" if port == 0 else None


def _wrong_file(uri: str) -> str | None:
    """Return what is wrong with the address of a SQLite file; None if it is one, or can become one."""
    if uri.removeprefix(SQLITE).partition("?")[0] in ("", ":memory:"):
        return f"it names no file: write {SQLITE}PATH"
    try:
        path = sqlite_path(absolute_uri(uri))
        if path.is_dir():
            return "it is a folder"
        if not path.exists():
            there = next(folder for folder in path.parents if folder.exists())
            return None if there.is_dir() and os.access(there, os.W_OK) else f"{there} cannot be written to"
        if not path.is_file():
            return "it is not a file"
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=0)) as database:
            database.execute("BEGIN IMMEDIATE").execute("SELECT name FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        return None if "locked" in str(error) else str(error)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def open_client(uri: str | None) -> MlflowClient:
    """Return a client of a store, creating a SQLite one where it is missing.

    Raises:
        UserError: the store cannot be opened, whenever it is tried.
        StoreDown: it is on a server that does not answer.
    """
    settle_mlflow()
    check_address(uri)
    address = absolute_uri(uri)
    try:
        return _open(address)
    except StoreDown as error:
        raise StoreDown(without_secrets(str(error), address)) from None
    except Exception as error:  # whatever a driver raises: it is about the address that was given
        reason = without_secrets(str(error), address) or type(error).__name__
        if isinstance(error, ModuleNotFoundError) and address.startswith("postgresql"):
            reason += ": pip install 'cl-ovq[postgres]'"
        shown = redact(uri or default_uri())
        # Not chained: a driver's own message may hold the password.
        raise UserError(f"{CANNOT_OPEN} '{shown}': {reason}") from None


def _open(address: str) -> MlflowClient:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import OperationalError

    reach(address)
    if address.startswith(DATABASES):
        _log_in(address)
    remote = _host(address) is not None
    try:
        with creating(address):
            client = MlflowClient(tracking_uri=address)
            client.search_experiments(max_results=1)
    except RestException as error:
        if error.get_http_status_code() >= 500:
            raise StoreDown(str(error)) from error
        raise
    except (MlflowException, OperationalError, OSError) as error:
        if remote:
            raise StoreDown(str(error)) from error
        raise
    return client


def _log_in(address: str) -> None:
    """Try to log in to a database, which MLflow itself would go on trying for minutes after a wrong password.

    Raises:
        StoreDown: it is there, but does not take connections now.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.pool import NullPool

    try:
        create_engine(address, poolclass=NullPool).connect().close()
    except OperationalError as error:
        if any(phrase in str(error) for phrase in MISTAKES):
            raise
        raise StoreDown(str(error.orig)) from error


def reach(address: str) -> None:
    """Try to reach the server of a store, which MLflow itself would go on trying for minutes.

    Raises:
        StoreDown: nothing answers.
    """
    host = _host(address)
    if host is None:
        return
    try:
        socket.create_connection(host, timeout=REACHING_SECONDS).close()
    except OSError as error:
        raise StoreDown(f"cannot reach {host[0]}:{host[1]}: {error.strerror or error}") from error


def _host(address: str) -> tuple[str, int] | None:
    """Return host and port of a store on a server; None for a file."""
    parts = urlsplit(address)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in PORTS or not parts.hostname:
        return None
    return parts.hostname, parts.port or PORTS[scheme]


@contextmanager
def creating(address: str) -> Iterator[None]:
    """Keep other processes from making the same SQLite store, or an experiment in it, at the same time."""
    if not address.startswith(SQLITE):
        yield
        return
    path = sqlite_path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def settle_mlflow() -> None:
    """Set what MLflow reads from its environment: no telemetry, no patience with a dead server, no chatter."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "1",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # where the result goes, and nothing else
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # schema migrations of a new store, one line each


def artifact_location(uri: str | None) -> str | None:
    """Return where the artifacts of a store's runs go; None where a tracking server decides.

    Beside a SQLite file, and under `runs/` for a database. Left to itself, MLflow puts them into the working directory
    of whoever comes first, where nobody who opens the store later finds them.
    """
    store = absolute_uri(uri)
    if store.startswith(SQLITE):
        return (sqlite_path(store).parent / "mlartifacts").as_uri()
    return (RUNS.resolve() / "mlartifacts").as_uri() if store.startswith(DATABASES) else None
