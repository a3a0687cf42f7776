"""Samples per second of the training loop: the platform's, Avalanche's own data path, and bare PyTorch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from cl_ovq.config import ExperimentConfig, from_dict, to_dict
from cl_ovq.mixers import dictionaries
from cl_ovq.models import build_model
from cl_ovq.runs.checking import check_config, find_device
from cl_ovq.runs.provenance import code_revision, device_name, package_versions
from cl_ovq.runs.setup import build_strategy, load_stream, quiet
from cl_ovq.strategies import OPTIMIZERS
from cl_ovq.training import seed_everything
from streams import Stream, rows_of


def measure_training(config: ExperimentConfig, rounds: int = 5) -> dict[str, Any]:
    """Train on the first experience by several loops in turn, `rounds` times each after one that does not count.

    All train the same model with the same optimizer on batches of the same size, dictionary writes included:
    the platform's loop (Avalanche's strategy, batched data, metrics), the same with Avalanche's sample-by-sample data,
    and a bare loop in PyTorch.

    Args:
        config: an experiment; its strategy is taken as `naive` with one epoch.
        rounds: measurements of each loop.

    Returns:
        `rows` of `{loop, samples_per_second, minimum, maximum, ratio}`, medians over rounds, `ratio` being the median
        over rounds of the bare loop's time over this loop's; `dictionary_metrics`, their share of the platform's step;
        and `machine`.
    """
    check_config(config)
    quiet()
    config = from_dict(to_dict(config), ["strategy.name=naive", "strategy.epochs=1"])
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    stream = load_stream(config)
    samples = len(stream.benchmark.streams["train"][0].dataset)

    loops = {
        "platform": _strategy_loop(config, stream, device, batched=True),
        "Avalanche's data path": _strategy_loop(config, stream, device, batched=False),
        "bare PyTorch": _bare_loop(config, stream, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for round_number in range(rounds + 1):
        for name, loop in loops.items():
            begun = time.perf_counter()
            loop()
            if round_number:
                seconds[name].append(time.perf_counter() - begun)

    bare = seconds["bare PyTorch"]
    rows = [
        {
            "loop": name,
            "samples_per_second": samples / statistics.median(times),
            "minimum": samples / max(times),
            "maximum": samples / min(times),
            "ratio": statistics.median(b / t for b, t in zip(bare, times, strict=True)),
        }
        for name, times in seconds.items()
    ]
    steps = math.ceil(samples / config.strategy.batch_size)
    share = _metrics_seconds(config, stream, device) / (statistics.median(seconds["platform"]) / steps)
    machine = {"device": device_name(device), "packages": package_versions(), "code": code_revision()}
    return {"rows": rows, "samples": samples, "rounds": rounds, "dictionary_metrics": share, "machine": machine}


def _model(config: ExperimentConfig, stream: Stream) -> nn.Module:
    seed_everything(config.seed, "model")
    return build_model(config, stream)


def _strategy_loop(
    config: ExperimentConfig, stream: Stream, device: torch.device, *, batched: bool
) -> Callable[[], None]:
    from cl_ovq.evaluation.dictionaries import DictionaryRecorder
    from cl_ovq.evaluation.logger import evaluator
    from cl_ovq.evaluation.slot_statistics import SlotStatisticsRecorder
    from cl_ovq.training.batches import BatchedData

    recorders = (DictionaryRecorder(config.evaluation.dictionary_every), SlotStatisticsRecorder())
    strategy = build_strategy(config, stream, _model(config, stream), device, evaluator=evaluator(*recorders))
    if not batched:
        strategy.plugins = [plugin for plugin in strategy.plugins if not isinstance(plugin, BatchedData)]
    experience = stream.benchmark.streams["train"][0]
    return lambda: strategy.train(experience, eval_streams=[])


def _metrics_seconds(config: ExperimentConfig, stream: Stream, device: torch.device) -> float:
    """Seconds that recording the dictionaries takes per training step, the mean of a hundred.

    Taken by itself, since it is too little to be seen as a difference between whole loops.
    """
    from cl_ovq.evaluation.dictionaries import DictionaryRecorder
    from cl_ovq.evaluation.logger import evaluator

    recorder = DictionaryRecorder(config.evaluation.dictionary_every)
    strategy = build_strategy(config, stream, _model(config, stream), device, evaluator=evaluator(recorder))
    strategy.train(stream.benchmark.streams["train"][0], eval_streams=[])
    times = []
    for step in range(100):
        begun = time.perf_counter()
        recorder.after_training_iteration(strategy)
        strategy.clock.train_iterations = step
        times.append(time.perf_counter() - begun)
    return statistics.mean(times)


def _bare_loop(config: ExperimentConfig, stream: Stream, device: torch.device) -> Callable[[], None]:
    model = _model(config, stream).to(device)
    optimizer = OPTIMIZERS[config.optimizer.name].build(config.optimizer, model.parameters())
    criterion = nn.CrossEntropyLoss()
    shared = list(dictionaries(model).values())
    rows = rows_of(stream.benchmark.streams["train"][0].dataset)
    task = (torch.zeros(1, dtype=torch.long),) if stream.scenario == "task_incremental" else ()

    def loop() -> None:
        model.train()
        for batch in rows[torch.randperm(len(rows))].split(config.strategy.batch_size):
            x, y = stream.samples.gather(batch).to(device), stream.samples.targets[batch].to(device)
            optimizer.zero_grad()
            with ExitStack() as recording:
                for dictionary in shared:
                    recording.enter_context(dictionary.recording())
                logits = model(x, *task)
            criterion(logits, y).backward()
            optimizer.step()
            for dictionary in shared:
                dictionary.write()

    return loop
