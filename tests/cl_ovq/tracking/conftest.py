"""Real servers, on this machine."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from cl_ovq.runs.run import run_experiment

SRC = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def run_in():
    """`run_in(folder, config)`: the result of an experiment, run in a working directory of its own."""

    def run_in(folder, config):
        with contextlib.chdir(folder):
            return run_experiment(config, Console(file=io.StringIO()))

    return run_in


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(uri, folder, environment=None, app=None):
    """A real MLflow server on a store, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--app-name", app] if app else []
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "1"} | (environment or {})
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    pytest.fail((folder / "log").read_text())
                time.sleep(0.1)
        else:
            pytest.fail("the server did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Relay:
    """A port that leads to a server's: the server as seen over a network that can be cut."""

    def __init__(self, address):
        host, _, port = address.removeprefix("http://").partition(":")
        self.target, self.port = (host, int(port)), free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.listener, self.sockets = None, []

    def open(self):
        """Let connections through."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self):
        """Cut the connections, and refuse new ones."""
        self.listener.shutdown(socket.SHUT_RDWR)
        for each in (self.listener, *self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.sockets.clear()

    def _accept(self, listener):
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(self.target)
            self.sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay(server):
    """A closed relay to a real MLflow server."""
    relay = Relay(server)
    yield relay
    if relay.listener is not None:
        relay.cut()


@pytest.fixture(scope="session")
def server(store, tmp_path_factory):
    """The address of a real MLflow server on this machine."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store.removeprefix("sqlite:///"), folder / "store.db")
    with serving(f"sqlite:///{folder}/store.db", folder) as address:
        yield address


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """The address of a database on a real PostgreSQL server on this machine, with a password in it."""
    psycopg = pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'cl-ovq[postgres]'")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (programs and str(programs[-1] / "initdb"))
    if not found:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    programs = Path(found).resolve().parent
    folder = tmp_path_factory.mktemp("postgres")
    port, user = free_port(), {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        for path in (folder, *folder.parents):
            if path == Path("/tmp"):
                break
            path.chmod(0o755)
        shutil.chown(folder, "postgres", "postgres")
    (folder / "password").write_text("hush hush")
    (folder / "password").chmod(0o644)
    data = folder / "data"
    common = {"cwd": folder, "check": True, "capture_output": True, **user}
    initdb = [programs / "initdb", "-D", data, "-U", "keeper", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}"]
    subprocess.run([*initdb, "-N", "-E", "UTF8"], **common)
    address = f"postgresql://keeper:hush%20hush@127.0.0.1:{port}/postgres"
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([programs / "postgres", "-D", data, *options], cwd=folder, stderr=log, **user)
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                psycopg.connect(address).close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown
        process.wait(timeout=600)
