"""What is audited: a configuration made small, and the runs of it that the checks look at."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.load import from_stored
from cl_ovq.errors import UserError
from cl_ovq.runs.callbacks import Callback
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import describe, load_stream
from cl_ovq.strategies import STRATEGIES
from cl_ovq.training.memory_usage import replay_samples
from streams.samples import READ
from streams.text_samples import TextSamples

if TYPE_CHECKING:
    from cl_ovq.runs.result import Result
    from cl_ovq.runs.run import Run
    from cl_ovq.strategies.base import Strategy
    from streams import Samples, Stream

RUNNING = ("running_mean", "running_var", "num_batches_tracked")  # of a norm over batches


class Subject:
    """A configuration under audit.

    Args:
        asked: the configuration.
        experiences: that audited runs learn at most.
        folder: of the audited runs; whoever made it removes it.
        source: directory of the finished run whose configuration it is; None for any other.

    Attributes:
        small: the configuration of the audited runs.
        shrunk: what they have less of, in words.

    Raises:
        UserError: the configuration is wrong, or its data is missing.
    """

    def __init__(self, asked: ExperimentConfig, experiences: int, folder: Path, source: Path | None = None) -> None:
        if experiences < 1:
            raise UserError(f"experiences: {experiences} is too small: audited runs need at least one")
        check_config(asked)
        self.asked, self.folder, self.source = asked, folder, source
        self.small, self.shrunk = self._made_small(experiences)
        self.name = describe(self.small)

    @property
    def part(self) -> Strategy:
        """What the registry says of the strategy."""
        return STRATEGIES[self.small.strategy.name]

    @cached_property
    def stream(self) -> Stream:
        """The stream, as the audited runs have it."""
        return load_stream(copy.deepcopy(self.small))

    @cached_property
    def watched(self) -> Watched:
        """A run that was watched as it trained."""
        return self.run("watched", self.small)

    @cached_property
    def plain(self) -> Watched:
        """The same, in which a model reads samples as they are: a run of its own where batches are augmented."""
        if not self.small.training.augmentation:
            return self.watched
        tree = to_dict(self.small)
        tree["training"]["augmentation"] = []
        return self.run("plain", from_stored(tree))  # without the options of augmentations

    def run(
        self, name: str, config: ExperimentConfig, watch: Watched | None = None, *, resume: bool = False
    ) -> Watched:
        """Run a configuration in a folder of its own.

        Args:
            name: of the folder.
            config: as it is to be run.
            watch: looks on.
            resume: whether to go on with the run of that folder.

        Raises:
            UserError: it cannot be run, or it diverges.
        """
        made, watch = copy.deepcopy(config), watch or Watched()
        made.output_dir = str(self.folder / name)
        try:
            watch.result = run_experiment(made, Console(file=io.StringIO()), callbacks=[watch], resume=resume)
        finally:
            watch.stop()
        if watch.result.verdict is not None:
            raise UserError(f"audit: the run {watch.result.verdict}: a run that does not train cannot be audited")
        return watch

    def _made_small(self, experiences: int) -> tuple[ExperimentConfig, list[str]]:
        small: Any = copy.deepcopy(self.asked)
        small.seeds, small.figures, small.tracking.enabled, small.training.compile = 1, False, False, False
        evaluation = small.evaluation
        evaluation.rows, evaluation.lengths, evaluation.capacities, evaluation.every_steps = [], [], [], None
        evaluation.log_length_scaling, small.checkpoint.every_steps = False, None
        small.strategy.epochs = 1
        try:
            check_config(small)
            stream = load_stream(copy.deepcopy(small))
        except UserError:  # a warm-up longer than an epoch, for example
            small.strategy.epochs = self.asked.strategy.epochs
            stream = load_stream(copy.deepcopy(small))
        there = len(stream.classes_per_experience[: self.asked.evaluation.stop_after])
        evaluation.stop_after = min(experiences, there)
        said = []
        if evaluation.stop_after < there:
            said.append(f"{evaluation.stop_after} of {there} experiences (--experiences)")
        if small.strategy.epochs < self.asked.strategy.epochs:
            said.append(f"1 epoch of {self.asked.strategy.epochs}")
        if self.asked.training.compile:
            said.append("passes not compiled")
        beside = self.asked.evaluation
        if beside.every_steps is not None or beside.lengths or beside.capacities:
            said.append("no evaluation within experiences or at other lengths")
        return small, said


@dataclass(frozen=True)
class Snapshot:
    """A model at a moment.

    Attributes:
        tensors: copies of its parameters and buffers, by name.
        frozen: names of parameters that require no gradient.
        still: names of running statistics of norms over batches none of whose own parameters requires one.
        running: names of all running statistics.
    """

    tensors: dict[str, Tensor]
    frozen: frozenset[str]
    still: frozenset[str]
    running: frozenset[str]


class Watched(Callback):
    """Looks on as a run trains, from outside of it: no plugin of the strategy, nor a part of what checkpoints keep.

    Every module that is called while the strategy trains is looked at, since methods make passes of their own.

    Attributes:
        run: the run, which is still there after its end.
        result: of it.
        seen: digests of the samples that came to a module, by number of the experience.
        kept: past samples that the strategy said to hold, at most, in an experience.
        before, after: the model at an experience's first pass, and at its end, by number of the experience.
        initial, final: the model before and after all training.
    """

    run: Run
    result: Result

    def __init__(self) -> None:
        self.seen: dict[int, set[bytes]] = {}
        self.kept: dict[int, int] = {}
        self.before: dict[int, Snapshot] = {}
        self.after: dict[int, Snapshot] = {}
        self.initial = self.final = Snapshot({}, *[frozenset[str]()] * 3)
        self._hook: Any = None

    def run_begin(self, run: Run) -> None:
        """Begin to look."""
        self.run = run
        one = run.stream.samples.gather(torch.arange(1))
        self._shape, self._dtype = one.shape[1:], one.dtype
        self.initial = snapshot(run.strategy.model)
        self._hook = register_module_forward_pre_hook(self._look)

    def experience_end(self, run: Run, row: int) -> None:
        """Keep how the model is after an experience."""
        self.after[run.strategy.clock.train_exp_counter - 1] = snapshot(run.strategy.model)

    def training_end(self, run: Run) -> None:
        """Keep how the model is in the end."""
        self.final = snapshot(run.strategy.model)
        self.stop()

    def stop(self) -> None:
        """Look no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _look(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        strategy = self.run.strategy
        if not strategy.is_training:
            return
        now = strategy.clock.train_exp_counter
        if now not in self.before:
            self.before[now] = snapshot(strategy.model)
        x = inputs[0] if inputs else None
        if isinstance(x, Tensor) and x.ndim and x.shape[1:] == self._shape and x.dtype == self._dtype:
            self.seen.setdefault(now, set()).update(digests(x))
            self.kept[now] = max(self.kept.get(now, 0), replay_samples(strategy))


def snapshot(model: nn.Module) -> Snapshot:
    """Return a model as it is now."""
    found: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    still, running = set(), set()
    for name, module in model.named_modules():
        mine = {f"{name}.{key}".removeprefix(".") for key, _ in module.named_buffers(recurse=False) if key in RUNNING}
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        running |= mine
        if own and not any(own):
            still |= mine
    copies = {name: tensor.detach().clone() for name, tensor in found.items()}
    return Snapshot(copies, frozenset(frozen), frozenset(still), frozenset(running))


def digests(x: Tensor) -> list[bytes]:
    """Return a digest of the content of each sample of a batch `[B, ...]`."""
    rows = x.detach().cpu().contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def contents(samples: Samples, rows: Tensor) -> Iterator[bytes]:
    """Yield a digest of the content of each sample, by its row in the stream `[n]`."""
    for part in rows.split(READ):
        if isinstance(samples, TextSamples):
            yield from (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in samples.texts(part))
        else:
            yield from digests(samples.gather(part))
