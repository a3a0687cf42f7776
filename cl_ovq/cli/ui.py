"""Starts MLflow's user interface, and says where runs are compared."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.runs.find import latest_runs, runs_of
from cl_ovq.tracking.export import open_existing
from cl_ovq.tracking.journal import PATTERN
from cl_ovq.tracking.store import RUNS, absolute_uri, artifact_location
from cl_ovq.tracking.sync import sync
from cl_ovq.tracking.view import comparison_address, view_address

HOST = "127.0.0.1"
STARTING_SECONDS = 300.0
STOPPING_SECONDS = 5.0
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
SECRET = "MLFLOW_FLASK_SERVER_SECRET_KEY"


def serve(names: Sequence[str], *, port: int, uri: str | None, host: str, browser: bool) -> None:
    """Run MLflow's server until it is interrupted.

    Args:
        names: runs to compare: MLflow's ids, names or directories; a sweep or several seeds stand for the runs below
            them. The latest few if none.
        port: the first to try.
        uri: the store; the default one if None.
        host: address to listen on; any but this machine's own turns MLflow's authentication on.
        browser: whether to open a browser, where there is a desktop.

    Raises:
        UserError: there are no runs, one that is named is not there, or the server cannot be started.
    """
    client = open_existing(uri)
    if next(RUNS.rglob(PATTERN), None) is not None:
        said = Console(stderr=True)
        for run in sync(RUNS, uri):  # runs that were killed would be shown as going on
            if run.outcome in ("kept", "malformed"):
                said.print(run.line(), soft_wrap=True, highlight=False, markup=False)
    runs = [run for name in names for run in runs_of(client, name)] if names else latest_runs(client)
    port = free_port(port, host)
    command, environment = server_command(absolute_uri(uri), host, port)
    root = f"http://{host}:{port}"
    # What it says of itself is not what this command prints; and Ctrl-C reaches it through this process.
    process = subprocess.Popen(command, env=os.environ | environment, stdout=sys.stderr, start_new_session=True)
    try:
        wait_until_up(root, process)
        console = Console()
        console.print(f"MLflow: [bold]{root}[/] (Ctrl-C to stop)", soft_wrap=True)
        experiments = list(dict.fromkeys(run.info.experiment_id for run in runs))
        if runs:
            page = comparison_address(root, experiments, [run.info.run_id for run in runs])
            console.print(f"compare {len(runs)} runs: {page}", soft_wrap=True, highlight=False, markup=False)
            charts = view_address(root, experiments[0])
            console.print(f"curves of all runs: {charts}", soft_wrap=True, highlight=False, markup=False)
            if browser and has_desktop():
                webbrowser.open(charts if len(runs) < 2 else page)
        process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        stop(process)


def server_command(uri: str, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts the server, and what it needs in its environment.

    Raises:
        UserError: it would listen to other machines without a password.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]  # not a line for every request
    # Not among the arguments, which every user of the machine can see: a store's address may hold a password.
    environment = {"MLFLOW_DISABLE_TELEMETRY": "1", "MLFLOW_BACKEND_STORE_URI": uri}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # of language models
    if location := artifact_location(uri):
        environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = location
    if host != HOST:
        if not os.environ.get(PASSWORD):
            raise UserError(
                f"--host {host}: other machines could read and change the runs: set {PASSWORD} to a password"
            )
        try:
            import flask_wtf  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(
                "--host: MLflow's authentication needs an extra package: pip install 'cl-ovq[server]'"
            ) from error
        command += ["--app-name", "basic-auth"]
        environment[SECRET] = os.environ.get(SECRET) or secrets.token_hex(32)
    return command, environment


def free_port(first: int, host: str = HOST) -> int:
    """Return the first free port of this machine from `first` on.

    Raises:
        UserError: none of the hundred ports tried is free.
    """
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port from {first} to {first + 99} on {host}")


def wait_until_up(root: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers.

    Raises:
        UserError: it ends instead, or does not answer.
    """
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{root}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                raise UserError("MLflow's server did not start: see its last lines above") from None
            time.sleep(0.2)
        else:
            return
    raise UserError(f"MLflow's server did not answer in {STARTING_SECONDS:.0f} seconds")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers, which leads a session of its own."""
    for blow in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, blow)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOPPING_SECONDS)


def has_desktop() -> bool:
    """Return whether there is a screen that a browser could be opened on."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
