"""Whether Ray is there: asked before it is connected to, and for as long as a sweep depends on it.

Ray itself waits a minute and more for a head that does not answer, and then ends the process without a word.
"""

from __future__ import annotations

import _thread
import os
import socket
import sys
import threading
from urllib.parse import urlsplit

from cl_ovq.errors import UserError

PATIENCE = 4.0  # seconds for an answer
PAUSE = 1.0  # seconds between two questions
TRIES = 3  # questions without an answer
GRACE = 5.0  # seconds to leave in, once Ray is gone
GO_ON = "what has ended is kept: go on with --resume"

Endpoint = tuple[str, int]


def answers(endpoint: Endpoint) -> bool:
    """Return whether something takes connections at a host and port."""
    try:
        with socket.create_connection(endpoint, timeout=PATIENCE):
            return True
    except OSError:
        return False


def endpoint_of(address: str) -> Endpoint | None:
    """Return host and port of `host:port` or `ray://host:port`; None of anything else, such as `auto`."""
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        return None if parts.hostname is None or parts.port is None else (parts.hostname, parts.port)
    except ValueError:
        return None


def check_address(address: str) -> None:
    """Refuse an address where nothing answers.

    Raises:
        UserError: nothing does.
    """
    from ray._private.services import canonicalize_bootstrap_address  # what `ray.init` makes of `auto`

    found = canonicalize_bootstrap_address(address) if address == "auto" else address
    endpoint = None if found is None else endpoint_of(found)
    if endpoint is not None and not answers(endpoint):
        raise UserError(
            f"cluster.address: no Ray cluster answers at '{endpoint[0]}:{endpoint[1]}': start it first; {GO_ON} where "
            "the sweep had begun"
        )


class Watch:
    """Asks Ray's head and the node that this process depends on whether they are there, in a thread of its own.

    When they are not, the main thread gets a KeyboardInterrupt; where it is stuck in Ray, the process ends with the
    line that it would have said.
    """

    def __init__(self) -> None:
        import ray

        context = ray.get_runtime_context()
        head = endpoint_of(context.gcs_address)
        own = [
            (node["NodeManagerAddress"], node["NodeManagerPort"])
            for node in ray.nodes()
            if node["NodeID"] == context.get_node_id()
        ]
        self.parts = {"its head": [] if head is None else [head], "its node here": own}
        self.reason: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)
        self._thread.start()

    def lost(self) -> bool:
        """Return whether Ray is gone, asking now."""
        for name, endpoints in self.parts.items():
            if self.reason is None and not all(map(_answers_yet, endpoints)):
                self.reason = f"Ray is gone ({name} does not answer): {GO_ON}"
        return self.reason is not None

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(PAUSE):
            if self.lost():
                break
        else:
            return
        _thread.interrupt_main()
        if not self._ended.wait(GRACE):
            print(f"error: {self.reason}", file=sys.stderr, flush=True)
            os._exit(2)


def _answers_yet(endpoint: Endpoint) -> bool:
    """Return whether an endpoint answers, perhaps busy or far away, within some tries."""
    return any(answers(endpoint) for _ in range(TRIES))
