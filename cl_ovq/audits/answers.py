"""Checks of what a trained model answers: the same in any company, and without being told the task."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from cl_ovq.audits.findings import Finding, faulty, judged, not_applicable
from cl_ovq.audits.subject import Subject
from cl_ovq.errors import first_line
from cl_ovq.seeding import unchanged_randomness
from streams import rows_of

if TYPE_CHECKING:
    from cl_ovq.runs.run import Run

SAMPLES = 160  # of the test stream that are asked for
LARGE = 128  # samples in a batch
MOVED = 1e-3  # in units of how much outputs vary from sample to sample
HUGE = 1e30  # where one output is a number and the other is not
ROUNDING = 1e-5  # relative; sums over batches of other sizes differ by 1e-6 or so


def batch_independence(subject: Subject) -> Finding:
    """What the model answers to a sample does not depend on the samples beside it.

    Measured: through the strategy's own evaluation, one by one, in batches of 128 in the order of the experiences, and
    in batches of 128 and of 7 with all experiences mixed. An answer counts as another one where an output moves by more
    than a thousandth of how much outputs vary from sample to sample.

    Known case: google-research/l2p issue 28, where prompts are chosen by majority over the test batch. A batch that
    holds one experience then tells the model which one it is.
    """
    run = subject.watched.run
    rows, tasks = _test_rows(run)
    alone = answers(run, rows, tasks, 1)
    mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    ways = {f"in batches of {LARGE}": (torch.arange(len(rows)), LARGE)}
    ways |= {f"mixed, in batches of {size}": (mixed, size) for size in (LARGE, 7)}
    largest, flipped, where = 0.0, 0, ""
    for way, (order, size) in ways.items():
        beside = torch.empty_like(alone)
        beside[order] = answers(run, rows[order], tasks[order], size)
        moved = apart(alone, beside)
        largest, changed = max(largest, float(moved.max())), moved > MOVED
        other = beside.argmax(-1) != alone.argmax(-1) if subject.stream.kind in ("classes", "tokens") else changed
        count = int((changed & other.reshape(len(rows), -1).any(1)).sum())
        if changed.any() and (not where or count > flipped):
            flipped, where = count, f"{int(changed.sum())} of {len(rows)} answers, {count} of them predictions, {way}"
    measured = {"predictions_changed": flipped, "samples": len(rows), "largest_difference": largest}
    good = "one by one, in batches and in any order the model answers alike"
    return judged(bool(where), f"answers are not those given one by one: {where}", good, **measured)


def task_labels(subject: Subject) -> Finding:
    """No task label is read where a model is to do without: in class- and domain-incremental evaluation.

    Measured: the samples of each test experience are evaluated with their task labels, with others, and as if they were
    another experience's; outputs must be equal bit for bit. The second finds plugins that ask which experience is being
    evaluated, and hide the classes of the others.
    """
    run = subject.watched.run
    if run.stream.scenario == "task_incremental":
        return not_applicable("a task-incremental stream gives the task label")
    rows, tasks = _test_rows(run)
    experiences = len(run.test)
    owner = _owners(run, rows)
    generator = torch.Generator().manual_seed(0)
    counts = {"task labels": 0, "experience": 0}
    for number in range(experiences):
        own = owner == number
        known = answers(run, rows[own], tasks[own], LARGE, number)
        others = torch.randint(1, max(2, experiences), tasks[own].shape, generator=generator)
        told = {"task labels": ((tasks[own] + others) % max(2, experiences), number)}
        if experiences > 1:
            told["experience"] = (tasks[own], (number + 1) % experiences)
        for what, (labels, named) in told.items():
            try:
                said = answers(run, rows[own], labels, LARGE, named)
            except (RuntimeError, IndexError, KeyError, ValueError, AssertionError) as error:
                return faulty(f"with other {what} evaluation fails, so they are read: {first_line(error)}")
            counts[what] += int(differ(known, said).sum())
    measured = {
        "changed_by_labels": counts["task labels"],
        "changed_by_experience": counts["experience"],
        "samples": len(rows),
    }
    read = " and ".join(
        {"task labels": "task labels", "experience": "the number of the test experience"}[what]
        for what, count in counts.items()
        if count
    )
    good = "with other task labels, and as if of another experience, every output is the same"
    return judged(bool(read), f"evaluation reads {read}", good, **measured)


class _Asked(SupervisedPlugin):
    """Gives an evaluation its task labels, and keeps what is answered."""

    def __init__(self, tasks: Tensor) -> None:
        super().__init__()
        self.tasks = tasks
        self.outputs: list[Tensor] = []

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Put the labels in place."""
        strategy.dataloader.all_tasks = self.tasks

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keep a batch's outputs."""
        self.outputs.append(strategy.mb_output.detach().cpu())


def answers(run: Run, rows: Tensor, tasks: Tensor, size: int, number: int = 0) -> Tensor:
    """Return what a strategy's own evaluation makes of test samples, in their order, `[n, ...]`.

    Args:
        run: that is over.
        rows: of the samples, `[n]`.
        tasks: their task labels, as the strategy is told, `[n]`.
        size: samples in a batch.
        number: of the test experience that they are evaluated as.
    """
    strategy, matrix = run.strategy, run.recorders.matrix
    everything = concat_datasets([one.dataset for one in run.test])
    place = {row: position for position, row in enumerate(rows_of(everything).tolist())}
    experience = copy.copy(run.test[number])
    experience._dataset = everything.subset([place[row] for row in rows.tolist()])
    asked, before = _Asked(tasks), (strategy.eval_mb_size, matrix.row, [*matrix.points])
    strategy.plugins.append(asked)
    strategy.eval_mb_size, matrix.row = size, None
    try:
        with unchanged_randomness():
            strategy.eval([experience])
    finally:
        strategy.plugins.remove(asked)
        strategy.eval_mb_size, matrix.row, matrix.points = before
    return torch.cat(asked.outputs)


def apart(known: Tensor, said: Tensor) -> Tensor:
    """Return how far outputs are apart, of each sample, in units of how much outputs vary from sample to sample, `[n]`.

    Not relative to their size: classes that are hidden by a constant of -10000 would outweigh all others. Of each
    output a hundred-thousandth counts as rounding, and is taken off.
    """
    known, said = known.double().reshape(len(known), -1), said.double().reshape(len(said), -1)
    finite = known.isfinite()
    counts = finite.sum(0).clamp(min=1)
    means = known.masked_fill(~finite, 0).sum(0) / counts
    spread = ((known - means).masked_fill(~finite, 0).square().sum(0) / counts).sqrt()
    unit = spread[spread >= spread.max() / 1000].median().clamp(min=1e-30)  # not of outputs that are constant
    away = (known - said).abs() - ROUNDING * known.abs()
    same = (known == said) | (known.isnan() & said.isnan())
    return (away.nan_to_num(nan=HUGE, posinf=HUGE).clamp(min=0).masked_fill(same, 0) / unit).amax(1)


def differ(known: Tensor, said: Tensor) -> Tensor:
    """Return of which samples outputs are not the same bits, `[n]`."""
    known, said = known.reshape(len(known), -1), said.reshape(len(said), -1)
    return ~((known == said) | (known.isnan() & said.isnan())).all(1)


def _test_rows(run: Run) -> tuple[Tensor, Tensor]:
    """Return rows and task labels of evenly chosen samples of the test experiences, in their order."""
    share = -(-SAMPLES // len(run.test))
    rows, tasks = [], []
    for one in run.test:
        count = len(one.dataset)
        chosen = torch.linspace(0, count - 1, min(share, count)).long()
        rows.append(rows_of(one.dataset)[chosen])
        tasks.append(torch.tensor(one.dataset.targets_task_labels[:])[chosen])
    return torch.cat(rows), torch.cat(tasks)


def _owners(run: Run, rows: Tensor) -> Tensor:
    """Return the number of the test experience of each row."""
    found: Sequence[Tensor] = [torch.isin(rows, rows_of(one.dataset)) for one in run.test]
    return torch.stack(list(found)).long().argmax(0)
