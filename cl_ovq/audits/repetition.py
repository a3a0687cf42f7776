"""Checks of what a seed decides: everything, and the same again, also after an interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cl_ovq.audits.findings import Finding, faulty, judged, not_applicable, sound
from cl_ovq.audits.subject import Subject, Watched
from cl_ovq.config.custom import CUSTOM
from cl_ovq.errors import UserError
from cl_ovq.training import derive_seed
from streams import build_stream

if TYPE_CHECKING:
    from cl_ovq.runs.run import Run
    from streams import Stream

SEEDS = 8  # whose class orders are compared, at most: two orders of equal chance would agree once in 128 times


def class_order(subject: Subject) -> Finding:
    """The order of the classes varies with the seed, or the configuration says that it is fixed.

    Measured: the stream is built for up to 8 seeds, until one has other classes in some experience. Results over seeds
    that share one order say nothing about others.
    """
    stream, section = subject.stream, subject.small.stream
    if stream.kind != "classes":
        return not_applicable(f"a stream of {stream.kind} has no classes")
    classes = _named(stream)
    if len({*classes}) == 1:
        return not_applicable("every experience has the same classes")
    if section.name == CUSTOM:
        return not_applicable("the stream was passed as an object, which seeds do not affect")
    if getattr(section.options, "class_order", None) is not None:
        return sound("stream.class_order fixes it", seeds=1)
    if getattr(section.options, "shuffle_classes", True) is False:
        return sound("stream.shuffle_classes=false fixes it", seeds=1)
    for number in range(1, SEEDS):
        seed = derive_seed(subject.small.seed + number, "stream")
        other = build_stream(section.name, section.options, seed=seed)
        if _named(other) != classes:
            return sound(f"seeds {subject.small.seed} and {subject.small.seed + number} differ", seeds=number + 1)
    return faulty(
        f"{SEEDS} seeds have the same classes in every experience, although no option asks for it", seeds=SEEDS
    )


def _named(stream: Stream) -> list[frozenset[str]]:
    """Return the names of the classes of each experience: their numbers may be those of the classes that were drawn."""
    return [frozenset(stream.class_names[number] for number in one) for one in stream.original_classes]


def repeats(subject: Subject) -> Finding:
    """Two runs of one seed are the same, bit for bit.

    Measured: results matrices, and all parameters and buffers of the trained model, of two runs in one process.
    """
    return _compared(subject.watched, subject.run("again", subject.small), "a second run of the same seed")


class _InterruptedError(Exception):
    pass


class _Interrupting(Watched):
    """Ends a run as a killed one ends, when an experience is over and its checkpoint is written."""

    def experience_end(self, run: Run, row: int) -> None:
        super().experience_end(run, row)
        if row < run.experiences:
            raise _InterruptedError


def resumes(subject: Subject) -> Finding:
    """A run that is interrupted after each experience and taken up again is one that never was, bit for bit.

    Measured: as for two runs of a seed. What a plugin keeps outside of its saved state is gone with the object; what a
    module keeps in a global is not, since this process goes on.
    """
    if not subject.small.checkpoint.enabled:
        return not_applicable("checkpoint.enabled=false: runs cannot resume")
    if subject.part.at_once or len(subject.watched.run.test) < 2:
        return not_applicable("only one experience is learned: there is no point at which to interrupt")
    count = 0
    while True:
        try:
            whole = subject.run("interrupted", subject.small, _Interrupting(), resume=count > 0)
        except _InterruptedError:
            count += 1
        except UserError as error:
            if not count:
                raise
            return faulty(f"an interrupted run does not resume: {error}", interruptions=count)
        else:
            break
    return _compared(subject.watched, whole, "a run that was interrupted", interruptions=count)


def _compared(known: Watched, other: Watched, what: str, **more: int) -> Finding:
    """Compare two runs."""
    matrices = {
        name: getattr(known.result, name) != getattr(other.result, name) for name in ("matrix", "matrices", "metrics")
    }
    mine, yours = known.final.tensors, other.final.tensors
    odd = [
        name
        for name in mine.keys() | yours.keys()
        if name not in mine or name not in yours or not _same(mine[name], yours[name])
    ]
    measured = {"tensors": len(mine), "tensors_that_differ": len(odd), **more}
    differ = [name for name, differs in matrices.items() if differs]
    said = [f"{len(odd)} of {len(mine)} tensors of the model"] if odd else []
    bad = f"{what} has others: {', '.join([*differ, *said])}"
    return judged(bool(differ or odd), bad, f"{what} has the same matrices and model, bit for bit", **measured)


def _same(mine: torch.Tensor, yours: torch.Tensor) -> bool:
    if mine.shape != yours.shape or mine.dtype != yours.dtype:
        return False
    return torch.equal(mine.reshape(-1).view(torch.uint8), yours.reshape(-1).view(torch.uint8))
