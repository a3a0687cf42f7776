"""One MLflow run, as the experiment sees it."""

from __future__ import annotations

import getpass
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cl_ovq.errors import UserError, printable
from cl_ovq.tracking.journal import JournalBusy, JournalWriter, to_number
from cl_ovq.tracking.names import describe_refused
from cl_ovq.tracking.process import SenderProcess
from cl_ovq.tracking.records import JournalMalformed
from cl_ovq.tracking.store import absolute_uri, artifact_location, check_address, default_uri
from cl_ovq.uris import redact

# How long is waited for the process that sends, which a busy machine may be slow to start.
OPENING_SECONDS = 60.0
ASKING_SECONDS = 30.0
ENDING_SECONDS = 60.0  # of all that a run waits for, from when its id is asked for to its end
# MLflow's limits of length.
PARAMETER_LENGTH = 6000
TAG_LENGTH = 8000


def warm_up() -> None:
    """Start the process that sends, so that it is ready when it is needed."""
    SenderProcess.shared()


class StoreCheck:
    """Opens a store, and checks whether it would take a run.

    Args:
        uri: tracking server or store; the default SQLite store if None.
        names: `experiment`, `run_name` and the keys of `tags` that the configuration gives; only the store is opened
            if None.

    Raises:
        UserError: no store can ever be opened at that address.
    """

    def __init__(self, uri: str | None, names: Mapping[str, Any] | None = None) -> None:
        check_address(uri)
        self._process = SenderProcess.shared()
        self._number = self._process.tell("check", uri=absolute_uri(uri), names=names)

    def wait(self) -> str | None:
        """Return why the store cannot be used for the moment; None if it can.

        Raises:
            UserError: it can never be opened, or would refuse the run.
        """
        answer = self._process.answer(self._number, OPENING_SECONDS)
        if answer is None:
            complaint = self._process.complaints().splitlines()
            return complaint[-1] if complaint else f"the store did not answer in {OPENING_SECONDS:.0f} seconds"
        if "mistake" in answer:
            raise UserError(answer["mistake"])
        return answer.get("down")


@dataclass(frozen=True)
class RunKey:
    """What names a tracked run to another process: enough to be the parent of its runs."""

    key: str


class Tracker:
    """One MLflow run, open for as long as the `with` block.

    Leaving the block marks the run FINISHED, FAILED after an exception, or KILLED after Ctrl-C or SIGTERM. No call here
    waits for MLflow, but the end, which waits for a while: what was not sent by then is sent by `cl-ovq sync`.

    Args:
        directory: of the run: its journal is kept there until all of it was sent.
        uri: tracking server or store; the default SQLite store if None.
        experiment: MLflow experiment; created where it is missing.
        run_name: name of the run.
        tags: tags of the run.
        parameters: parameters of the run by name.
        parent: the run that this one belongs to.
        resume: whether to go on with the run that was last tracked from `directory`. It keeps its id, name and tags;
            metrics that it logs again at steps that it had logged are not logged twice. Where there is none, a new run
            begins. None goes on with it if its parameters are the same: it was interrupted before its first checkpoint,
            and begins again.

    Raises:
        UserError: the run that is to be resumed has not ended, or its journal is none, or nothing can be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        uri: str | None,
        experiment: str,
        run_name: str,
        tags: Mapping[str, Any],
        parameters: Mapping[str, Any],
        parent: Tracker | RunKey | None = None,
        resume: bool | None = False,
    ) -> None:
        self.directory = directory
        self._uri = absolute_uri(uri)
        self._run_id: str | None = None
        self._artifacts = artifact_location(uri)
        self._patience = ENDING_SECONDS
        self._ended = False
        try:
            self._journal = JournalWriter(directory, parameters=_digest(parameters), resume=resume)
        except JournalBusy as error:
            raise UserError(f"output_dir: the run in {directory} is still active") from error
        except JournalMalformed as error:
            raise UserError(
                f"output_dir: the journal of the run in {directory} is invalid: {error}: move its tracking-* files "
                "elsewhere"
            ) from error
        except OSError as error:
            raise UserError(f"output_dir: cannot write into {directory}: {error.strerror}") from error
        if self._journal.resumed:
            self._journal.write("resume", uri=redact(self._uri))
        else:
            source = {"mlflow.source.name": "cl-ovq", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
            self._journal.write(
                "run",
                uri=redact(self._uri),
                experiment=experiment,
                name=run_name,
                tags=source | _texts(tags, TAG_LENGTH),
                parent=parent.key if parent else None,
                time=_now(),
            )
            self._journal.write("parameters", values=_texts(parameters, PARAMETER_LENGTH))
        self._sender = SenderProcess.shared()
        self._following: int | None = self._sender.tell("follow", **self._address())

    @property
    def key(self) -> str:
        """What names the run before MLflow has given it an id."""
        return self._journal.key

    @property
    def resumed(self) -> bool:
        """Whether this goes on with a run that was tracked from the directory before."""
        return self._journal.resumed

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while its store cannot be reached."""
        if self._run_id is None and not self._ended:
            # The answer to the very first command came long ago; a new one would wait for all that is to be sent.
            first, self._following = self._following, None
            with self._waiting(ASKING_SECONDS) as seconds:
                answer = None if first is None else self._sender.answer(first, seconds)
            if first is not None and answer is None and self._sender.alive:
                return None  # it stands still: asking once more would be waiting twice
            if not (answer or {}).get("run_id"):
                with self._waiting(ASKING_SECONDS) as seconds:
                    answer = SenderProcess.ask("follow", seconds, **self._address())
            self._run_id = answer.get("run_id") if answer else None
        return self._run_id

    @contextmanager
    def _waiting(self, longest: float) -> Iterator[float]:
        """Give the seconds that may be waited, and take what was waited from what is left."""
        began = time.monotonic()
        yield min(longest, self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - began))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            status = "FINISHED"
        else:
            status = "KILLED" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "FAILED"
        end: dict[str, Any] = {"status": status, "time": _now()}
        self._journal.write("end", **end)
        self._journal.close()
        self._ended = True
        with self._waiting(ENDING_SECONDS) as seconds:
            answer = SenderProcess.ask("finish", seconds, **self._address(), **end)
        self._run_id = self._run_id or (answer or {}).get("run_id")
        self._report(answer)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step. The steps of a metric must not fall."""
        numbers = {name: to_number(float(value)) for name, value in values.items()}
        self._journal.write("metrics", values=numbers, step=step, time=_now())

    def flush(self) -> bool:
        """Write what a full disk has kept in memory; return whether nothing is left there."""
        return self._journal.flush()

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        self._journal.write("tags", values=_texts(tags, TAG_LENGTH))

    def log_file(self, path: Path) -> None:
        """Keep a file of the run's directory as an artifact of the run."""
        self._journal.write("file", path=self._relative(path))

    def log_input(self, name: str, digest: str, *, source: Mapping[str, Any], profile: Any, context: str) -> None:
        """Name a data set that the run uses.

        Args:
            name: of the data set.
            digest: of its content, at most 36 characters.
            source: where it comes from.
            profile: what it holds, in numbers.
            context: what it is used for.
        """
        self._journal.write(
            "input",
            name=name,
            digest=digest,
            source_type="local",
            source=dict(source),
            profile=profile,
            context=context,
        )

    def log_model(self, path: Path, *, inputs: Mapping[str, Any], outputs: int) -> None:
        """Register the trained model, from a file that `cl_ovq.models.saving.save_model` wrote.

        Args:
            path: the file.
            inputs: shape of each input by name, -1 for any number.
            outputs: classes.
        """
        self._journal.write("model", path=self._relative(path), inputs=dict(inputs), outputs=outputs)
        self._sender.tell("follow", **self._address())  # now, while the run draws its figures, and not at its end

    def _relative(self, path: Path) -> str:
        """Return a path as it is seen from the run's directory, which may be moved before the journal is sent."""
        path, directory = path.absolute(), self._journal.path.parent
        return str(path.relative_to(directory) if path.is_relative_to(directory) else path)

    def _address(self) -> dict[str, str | None]:
        return {"journal": str(self._journal.path), "uri": self._uri, "artifacts": self._artifacts}

    def _report(self, answer: Mapping[str, Any] | None) -> None:
        """Say in a line on standard error what was not sent."""
        if self._journal.problem:
            print(f"tracking: {self._journal.problem}", file=sys.stderr)
        if answer is None or not answer["sent"]:
            reason = (answer or {}).get("reason") or "no answer"
            store = "" if self._uri == default_uri() else f" --uri {shlex.quote(redact(self._uri))}"
            again = f"cl-ovq sync {shlex.quote(str(self.directory))}{store}"
            print(printable(f"tracking: not all was sent to MLflow ({reason}): {again}"), file=sys.stderr)
        if refused := (answer or {}).get("refused"):
            print(f"tracking: {describe_refused(refused)}", file=sys.stderr)


class NullTracker(Tracker):
    """The tracker of a run that is not tracked: everything is forgotten."""

    def __init__(self) -> None:
        pass

    @property
    def resumed(self) -> bool:
        """False: there is no MLflow run."""
        return False

    @property
    def run_id(self) -> None:
        """None: there is no MLflow run."""
        return

    def __exit__(self, *raised: object) -> None:
        pass

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Forget metrics."""

    def flush(self) -> bool:
        """Keep nothing in memory."""
        return True

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Forget tags."""

    def log_file(self, path: Path) -> None:
        """Forget a file."""

    def log_input(self, name: str, digest: str, *, source: Mapping[str, Any], profile: Any, context: str) -> None:
        """Forget a data set."""

    def log_model(self, path: Path, *, inputs: Mapping[str, Any], outputs: int) -> None:
        """Forget a model."""


def _texts(values: Mapping[str, Any], length: int) -> dict[str, str]:
    return {name: str(value)[:length] for name, value in values.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _digest(parameters: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_texts(parameters, PARAMETER_LENGTH), sort_keys=True).encode()).hexdigest()[:16]


def _now() -> int:
    return int(time.time() * 1000)
