"""The process beside a training process that sends its journals to MLflow.

It reads commands, one JSON object a line, and answers in kind; `process.py` is the other end. When the training process
dies, in whatever way, the pipe between them closes: what its runs had written is sent, and they are marked KILLED.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from cl_ovq.errors import UserError
from cl_ovq.tracking.journal import JournalBusy
from cl_ovq.tracking.names import check_names, deleted
from cl_ovq.tracking.records import JournalMalformed
from cl_ovq.tracking.sending import Sending
from cl_ovq.tracking.store import StoreDown, open_client, settle_mlflow

INTERVAL = 3.0  # seconds between two batches
GRACE = 5.0  # seconds in which a training process that closed the pipe is expected to be gone


class Sender:
    """Follows journals until the training process is gone."""

    def __init__(self) -> None:
        self.following: dict[str, Sending] = {}

    def check(self, uri: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the names of a run, if given, and open its store; say what is wrong, if anything is."""
        try:
            if names is not None:
                check_names(**names)
            client = open_client(uri)
            found = client.get_experiment_by_name(names["experiment"]) if names is not None else None
            if found is not None and found.lifecycle_stage == "deleted":
                raise UserError(f"tracking.experiment: {deleted(found, uri)}")
        except UserError as error:
            return {"mistake": str(error)}
        except StoreDown as error:
            return {"down": str(error)}
        return {}

    def follow(self, journal: str, uri: str, artifacts: str | None) -> dict[str, Any]:
        """Send a journal from now on."""
        try:
            sending = self._sending(journal, uri, artifacts)
        except (JournalBusy, JournalMalformed, OSError) as error:
            return {"down": str(error)}
        sending.advance()
        return {"run_id": sending.run_id}

    def finish(self, journal: str, uri: str, artifacts: str | None, status: str, time: int) -> dict[str, Any]:
        """Send the rest of a journal of a run that has ended, and let go of it."""
        try:
            sending = self._sending(journal, uri, artifacts)
        except (JournalBusy, JournalMalformed, OSError) as error:
            return {"run_id": None, "sent": False, "reason": str(error), "refused": []}
        sending.ending = status, time
        sent = sending.finish()
        del self.following[journal]
        refused = sending.state.refused
        return {"run_id": sending.run_id, "sent": sent, "reason": sending.problem, "refused": refused}

    def _sending(self, journal: str, uri: str, artifacts: str | None) -> Sending:
        if journal not in self.following:
            self.following[journal] = Sending(Path(journal), uri, artifacts)
        return self.following[journal]

    def serve(self, commands: BinaryIO, answers: BinaryIO) -> None:
        """Obey commands, and send what comes in between, until the pipe closes."""
        descriptor, rest, last = commands.fileno(), b"", time.monotonic()
        while True:
            wait = max(0.0, last + INTERVAL - time.monotonic()) if self.following else None
            ready, _, _ = select.select([descriptor], [], [], wait)
            if not ready:
                for sending in self.following.values():
                    sending.advance()  # which ends runs, too: a fork of a killed process may keep the pipe open
                last = time.monotonic()
                import mlflow.pyfunc  # noqa: F401 - registering a model needs it: a second that is better spent now

                continue
            data = os.read(descriptor, 1 << 16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                command = json.loads(line)
                number, name = command.pop("number"), command.pop("do")
                answer = {"number": number, **getattr(self, name)(**command)}
                try:
                    answers.write(json.dumps(answer).encode() + b"\n")
                    answers.flush()
                except BrokenPipeError:
                    break
        self.close()

    def close(self) -> None:
        """Send what is left of every journal, and mark the runs that were not ended."""
        deadline = time.monotonic() + GRACE
        for sending in self.following.values():
            while not sending.reader.abandoned() and time.monotonic() < deadline:
                time.sleep(0.05)
            sending.finish()


def main() -> None:
    """Serve the process that started this one."""
    # Ctrl-C and a scheduler's SIGTERM are for the training process; this one ends when that has ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody else may write between the answers
    settle_mlflow()
    # Two seconds, in which the training process reads its data: it need not wait for them at its first question.
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    Sender().serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
