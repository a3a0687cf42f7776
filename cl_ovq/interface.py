"""Starts MLflow's user interface on the local store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.tracking import RUNS, default_uri

HOST = "127.0.0.1"


def serve(port: int) -> None:
    """Run MLflow's server on the default store until it is interrupted.

    Raises:
        UserError: there are no runs yet.
    """
    if not (RUNS / "mlflow.db").exists():
        raise UserError(f"no runs under {RUNS.resolve()}: run an experiment first, e.g. cl-ovq run quickstart")
    port = free_port(port)
    Console().print(f"MLflow: [bold]http://{HOST}:{port}[/] (Ctrl-C to stop)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", default_uri()]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    try:
        subprocess.run(command, check=False, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "1"})
    except KeyboardInterrupt:
        return


def free_port(first: int) -> int:
    """Return the first free port of this machine from `first` on.

    Raises:
        UserError: none of the hundred ports tried is free.
    """
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port from {first} to {first + 99}")
