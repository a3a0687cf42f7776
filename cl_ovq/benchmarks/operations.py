"""What whole-dictionary operations cost in accuracy: merging parallel workers, another capacity, forgetting a task.

Each is measured on a memory head (Split-Fashion-MNIST, pixels) and on the dictionaries of an OVQ transformer
(Split-Digits), whose weights are trained first and then left alone, while its dictionaries are written anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from cl_ovq.config import ExperimentConfig, load_config
from cl_ovq.evaluation.aggregates import Aggregate, aggregate
from cl_ovq.metric_names import words
from cl_ovq.mixers import DictionaryConfig, dictionaries
from cl_ovq.mixers.operations import forget, merge, resize
from cl_ovq.models import build_model
from cl_ovq.models.memory import MemoryHead
from cl_ovq.report.table import Table, mean_number
from cl_ovq.runs.setup import build_strategy, load_stream, quiet
from cl_ovq.training import seed_everything
from streams import Stream, rows_of

HEAD_SIZES = (2000, 1000, 500, 200, 100, 50)
DICTIONARY_SIZES = (256, 128, 64, 32, 16, 8)
BATCH = 64

Numbers = dict[str, float]


def measure_operations(seeds: int, console: Console) -> dict[str, Any]:
    """Measure all operations over seeds 0 to `seeds` - 1.

    Returns:
        `memory_head` and `transformer`: aggregates of accuracies by name; every experience counts alike.
    """
    quiet()
    found: dict[str, list[Numbers]] = {"memory_head": [], "transformer": []}
    for seed in range(seeds):
        for name, measure in (("memory_head", measure_memory_head), ("transformer", measure_transformer)):
            found[name].append(measure(seed))
            console.print(f"{name.replace('_', ' ')}, seed {seed}")
    return {
        name: {key: asdict(aggregate([numbers[key] for numbers in runs])) for key in runs[0]}
        for name, runs in found.items()
    }


def measure_memory_head(seed: int, experiment: str = "split_fashion_mnist_memory", *overrides: str) -> Numbers:
    """Measure the operations on a memory head; see `measure_operations`."""
    config = load_config(experiment, [f"seed={seed}", "threads=1", *overrides])
    stream = load_stream(config)
    tasks = [_rows(stream, "train", task) for task in range(len(stream.classes_per_experience))]
    features, memory = nn.Flatten(), config.memory
    assert memory is not None

    def learned(rows: Iterable[Tensor], capacity: int | None = None) -> MemoryHead:
        memory.capacity = capacity or memory.capacity
        seed_everything(seed, "model")
        (head,) = (module for module in build_model(config, stream).modules() if isinstance(module, MemoryHead))
        for part in rows:
            for batch in part.split(1024):
                head.observe(features(stream.samples.gather(batch)), stream.samples.targets[batch])
        return head

    def accuracies(head: MemoryHead, among: Sequence[int] | None = None) -> list[float]:
        return _accuracies(stream, lambda x: head(features(x)), among)

    capacity = memory.capacity
    one = learned(tasks)
    found = {"sequential": _mean(accuracies(one))}
    mixed = torch.cat(tasks)[torch.randperm(sum(map(len, tasks)), generator=torch.Generator().manual_seed(seed))]
    for name, shards in (("merged by task", tasks), ("merged by shard", mixed.chunk(len(tasks)))):
        first, *others = [learned([shard]) for shard in shards]
        for other in others:
            first.merge_(other)
        found[name] = _mean(accuracies(first))
    for size in (size for size in HEAD_SIZES if size < capacity):
        smaller = copy.deepcopy(one)
        smaller.resize_(size)
        found[f"resized to {size}"] = _mean(accuracies(smaller))
        found[f"learned with {size}"] = _mean(accuracies(learned(tasks, size)))
    memory.capacity = capacity
    gone, classes = 0, stream.classes_per_experience[0]
    without = copy.deepcopy(one)
    without.forget(classes)
    never = learned(tasks[1:])
    for name, head in (("before forgetting", one), ("after forgetting", without), ("never learned", never)):
        scores = accuracies(head)
        found[f"{name}: the task"] = scores.pop(gone)
        found[f"{name}: the others"] = _mean(scores)
        found[f"{name}: the task, among its classes"] = accuracies(head, classes)[gone]
    return found


def measure_transformer(seed: int, experiment: str = "quickstart", *overrides: str) -> Numbers:
    """Measure the operations on the dictionaries of an OVQ transformer; see `measure_operations`."""
    settings = [f"seed={seed}", "threads=1", "dictionary.scope=stream", "dictionary.sums=true", *overrides]
    config = load_config(experiment, settings)
    torch.set_num_threads(1)
    stream = load_stream(config)
    model = _trained(config, stream)
    tasks = [_rows(stream, "train", task) for task in range(len(stream.classes_per_experience))]

    def written(parts: Iterable[tuple[int, Tensor]], capacity: int | None = None) -> nn.Module:
        fresh = copy.deepcopy(model)
        for dictionary in dictionaries(fresh).values():
            dictionary.reset()
        if capacity is not None:
            resize(fresh, capacity)
        for task, rows in parts:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            _write(fresh, stream, rows[order], task)
        return fresh

    def accuracies(network: nn.Module) -> list[float]:
        return _accuracies(stream, network.eval())

    assert isinstance(config.dictionary, DictionaryConfig)
    capacity = config.dictionary.capacity
    one = written(enumerate(tasks))
    found = {"as trained": _mean(accuracies(model)), "sequential": _mean(accuracies(one))}
    found["empty dictionaries"] = _mean(accuracies(written([])))
    first, *others = [written([(task, rows)]) for task, rows in enumerate(tasks)]
    for other in others:
        for name, dictionary in dictionaries(first).items():
            merge(dictionary, dictionaries(other)[name])
    found["merged by task"] = _mean(accuracies(first))
    for size in (size for size in DICTIONARY_SIZES if size < capacity):
        smaller = copy.deepcopy(one)
        resize(smaller, size)
        found[f"resized to {size}"] = _mean(accuracies(smaller))
        found[f"learned with {size}"] = _mean(accuracies(written(enumerate(tasks), size)))
    gone = 0
    without = copy.deepcopy(one)
    for dictionary in dictionaries(without).values():
        forget(dictionary, gone)
    never = written(list(enumerate(tasks))[1:])
    for name, network in (("before forgetting", one), ("after forgetting", without), ("never learned", never)):
        scores = accuracies(network)
        found[f"{name}: the task"] = scores.pop(gone)
        found[f"{name}: the others"] = _mean(scores)
    return found


def _trained(config: ExperimentConfig, stream: Stream) -> nn.Module:
    seed_everything(config.seed, "model")
    model = build_model(config, stream)
    strategy = build_strategy(config, stream, model, torch.device("cpu"))
    seed_everything(config.seed, "training")
    for experience in stream.benchmark.streams["train"]:
        strategy.train(experience, eval_streams=[])
    return model.eval()


@torch.no_grad()
def _write(model: nn.Module, stream: Stream, rows: Tensor, task: int) -> None:
    """Write samples into a model's dictionaries, batch by batch, its weights untouched."""
    found = list(dictionaries(model).values())
    for dictionary in found:
        dictionary.begin_task(task)
    for batch in rows.split(BATCH):
        with ExitStack() as stack:
            for dictionary in found:
                stack.enter_context(dictionary.recording(evaluation=True))
            model(stream.samples.gather(batch))
        for dictionary in found:
            dictionary.write()


def _rows(stream: Stream, name: str, task: int) -> Tensor:
    return rows_of(stream.benchmark.streams[name][task].dataset)


@torch.no_grad()
def _accuracies(stream: Stream, predict: Callable[[Tensor], Tensor], among: Sequence[int] | None = None) -> list[float]:
    """Accuracy on each test experience, among some classes only if they are given."""
    found = []
    for task in range(len(stream.classes_per_experience)):
        right = 0
        for batch in (rows := _rows(stream, "test", task)).split(1024):
            scores = predict(stream.samples.gather(batch))
            if among is not None:
                hidden = torch.ones(scores.shape[1], dtype=torch.bool)
                hidden[list(among)] = False
                scores = scores.masked_fill(hidden, -torch.inf)
            right += int((scores.argmax(1) == stream.samples.targets[batch]).sum())
        found.append(right / len(rows))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def operations_table(name: str, aggregates: dict[str, dict[str, Any]]) -> Table:
    """Return a table of accuracies, mean and half the 95 % interval over seeds."""
    table = Table("", "accuracy", title=words(name))
    for key, found in aggregates.items():
        table.add(key, mean_number(Aggregate(**found), "accuracy"))
    return table
