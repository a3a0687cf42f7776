"""Proof that a rebuild changes no number: results of many small runs, frozen at one revision and compared at another.

    python -m cl_ovq.benchmarks.unchanged freeze FILE     # at the revision before
    python -m cl_ovq.benchmarks.unchanged compare FILE    # at the one after, on the same machine

Every number of the results' matrices, metrics, growth curves and lengths is compared bit for bit. Bits differ between
processors.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from cl_ovq.config import ExperimentConfig, load_config
from cl_ovq.config.parts import UnusedKeyError
from cl_ovq.mixers import MIXERS
from cl_ovq.models import MODELS
from cl_ovq.runs.callbacks import Callback
from cl_ovq.runs.result import Result
from cl_ovq.runs.run import Run, run_experiment
from cl_ovq.strategies import STRATEGIES

SMALL = ("threads=1", "tracking.enabled=false", "strategy.epochs=1", "strategy.batch_size=100")
IMAGES: tuple[str, ...] = (
    "quickstart",
    *SMALL,
    "model.depth=1",
    "evaluation.dictionary_every=3",
    "strategy.buffer_size=60",
)
IMAGES += ("strategy.importance_samples=40", "strategy.candidates=30", "evaluation.stop_after=3")
SEQUENCES = ("stream.train=64", "stream.validation=32", "stream.test=32", "strategy.batch_size=32", "model.depth=1")
DOMAINS = "stream.scenario=domain_incremental"
MEMORY = ("split_digits_memory", *SMALL)
RUNS: dict[str, tuple[str, ...]] = {
    **{f"strategy {name}": (*IMAGES, f"strategy.name={name}") for name in STRATEGIES},
    **{f"mixer {name}": (*IMAGES, f"model.mixer={name}", "stream.blur=0.2") for name in MIXERS},
    **{f"scope {name}": (*IMAGES, f"dictionary.scope={name}") for name in ("sequence", "task", "stream")},
    **{
        f"scenario {name}": (*IMAGES, f"stream.scenario={name}_incremental", "strategy.name=derpp")
        for name in ("class", "domain", "task")
    },
    **{f"model {name}": (*IMAGES, f"model.name={name}") for name in MODELS if name != "sequence_model"},
    "memory head": MEMORY,
    "memory head, calibrated": (*MEMORY, "memory.calibrate=true", "stream.validation_fraction=0.2"),
    "memory head, trained encoder": (*IMAGES, "model.head=memory", "memory.capacity=100"),
    "memory head, int8": (*MEMORY, "memory.storage=int8"),
    "refreshed": (*IMAGES, "strategy.name=replay", "dictionary.refresh=true"),
    "sums": (*IMAGES, "dictionary.sums=true"),
    "half-life": (*IMAGES, "dictionary.half_life=500"),
    "k-means++": (*IMAGES, "dictionary.slot_init=kmeans++", "dictionary.scope=sequence"),
    "novelty": (*IMAGES, "dictionary.growth=novelty", "dictionary.assignment=old"),
    "first experience": (*IMAGES, "model.train_encoder=first_experience", "model.dropout=0.3"),
    "anytime": (*IMAGES, "evaluation.every_steps=5"),
    "buffer by bytes": (*IMAGES, "strategy.name=er_ace", "strategy.buffer_bytes=9000"),
    "sgd, validation": (*IMAGES, "optimizer.name=sgd", "optimizer.learning_rate=0.05", "evaluation.split=validation"),
    "rotated": (*IMAGES, "stream.name=rotated_digits", DOMAINS, "model.position=rotary", "model.mixer=softmax"),
    "permuted": (*IMAGES, "stream.name=permuted_digits", DOMAINS),
    "resume": (*IMAGES, "strategy.name=mir", "checkpoint.enabled=true"),
    "resume, memory": (*MEMORY, "checkpoint.enabled=true"),
    **{
        f"sequences {name}": (f"paper/{name}", *SMALL, *SEQUENCES, *more)
        for name, more in {
            "recall": ("evaluation.lengths=[128]", "evaluation.length_tokens=1024"),
            "regression": ("strategy.name=replay",),
        }.items()
    },
}
RESUMED = ("resume", "resume, memory")


class _Stopped(Exception):
    """The run is cut off here."""


def main(arguments: list[str]) -> int:
    """Freeze, or compare and return 1 where something differs."""
    action, file = arguments[0], Path(arguments[1])
    found = {name: numbers(name) for name in track(RUNS, description=action)}
    if action == "freeze":
        file.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    frozen = json.loads(file.read_text())
    differ = [name for name in frozen if json.loads(json.dumps(found.get(name))) != frozen[name]]
    print(f"{len(frozen) - len(differ)} of {len(frozen)} runs are equal bit for bit")
    for name in differ:
        print(f"differs: {name}")
    return 1 if differ else 0


def numbers(name: str) -> dict[str, Any] | str:
    """Return what a run found; the line in which it was refused, or how it failed."""
    experiment, *overrides = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        console = Console(file=io.StringIO())
        try:
            config = _load(experiment, [*overrides, f"output_dir={folder}/run"])
            if name in RESUMED:
                with _suppressed():
                    run_experiment(config, console, callbacks=[_Stop()])
            return _of(run_experiment(config, console, resume=name in RESUMED))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            return f"{type(error).__name__}: {error}"


def _load(experiment: str, overrides: list[str]) -> ExperimentConfig:
    """Load a configuration without the overrides that its parts have no key for."""
    while True:
        try:
            return load_config(experiment, overrides)
        except UnusedKeyError as error:
            overrides = [text for text in overrides if not text.startswith(f"{error.key}=")]


def _suppressed() -> Any:
    from contextlib import suppress

    return suppress(_Stopped)


class _Stop(Callback):
    def experience_end(self, run: Run, row: int) -> None:
        if row == 2:
            raise _Stopped


def _of(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.to_json())
    kept = {key: value for key, value in found.items() if key not in ("config", "output_dir", "run_id", "artifacts")}
    kept["provenance"] = {
        key: kept["provenance"][key] for key in ("train_steps", "replay_bytes", "method_bytes", "parameters", "data")
    }
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
