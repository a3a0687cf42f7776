"""The configuration tree: every field with its type, default, range and meaning.

One tree describes one experiment. The dataclasses here hold what a section has whatever parts it names; the options of
the named parts, which lie beside the parts, join them (`cl_ovq.config.parts`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from cl_ovq.config.check import field_of
from cl_ovq.config.protocols import MOST_SEEDS
from cl_ovq.encoders import ENCODERS
from cl_ovq.in_context import LearnerOptions
from cl_ovq.mixers import ChunkOptions
from cl_ovq.models import HEADS, MODELS, MemoryOptions
from cl_ovq.options import COUNT, LONGEST, option
from cl_ovq.paths import FIGURE_FORMATS
from cl_ovq.registry import Registry
from cl_ovq.strategies import AUGMENTATIONS, OPTIMIZERS, SCHEDULES, STRATEGIES
from streams import STREAMS

STREAM_PARTS = Registry.over("stream", STREAMS)


@dataclass
class StreamName:
    """What the section `stream` has beside the options of the stream."""

    name: str = field(metadata={"help": "task stream: a name from `cl-ovq list streams`", "parts": STREAM_PARTS})


@dataclass
class StreamConfig:
    """The task stream: its name, and the options that belong to streams of that name."""

    name: str
    options: Any


@dataclass
class EncoderConfig:
    """The pretrained network between the images of the stream and the model."""

    name: str = option("none", "encoder: a name from `cl-ovq list encoders`", parts=ENCODERS)


@dataclass
class ModelConfig:
    """The network: what every model has."""

    name: str = option("patch_transformer", "model: a name from `cl-ovq list models`", parts=MODELS)
    head: str = option("linear", "head: a name from `cl-ovq list heads`", parts=HEADS)
    train_encoder: str = option(
        "always",
        "when the encoder, i.e. everything but the head, is trained: in every experience, only in the first, "
        "or never (random features)",
        choices=("always", "first_experience", "never"),
    )


@dataclass
class StrategyConfig:
    """How the model learns from the stream: what every strategy has."""

    name: str = option("naive", "strategy: a name from `cl-ovq list strategies`", parts=STRATEGIES)
    epochs: int = option(1, "epochs per experience", minimum=1, maximum=1_000_000)
    batch_size: int = option(32, "new samples per training step", minimum=1, maximum=COUNT)


@dataclass
class OptimizerConfig:
    """The optimizer of the network's weights."""

    name: str = option("adamw", "optimizer: a name from `cl-ovq list optimizers`", parts=OPTIMIZERS)
    schedule: str = option(
        "constant",
        "learning-rate schedule within each experience: a name from `cl-ovq list schedules`",
        parts=SCHEDULES,
    )


@dataclass
class TrainingConfig:
    """How a training step is made."""

    augmentation: list[str] = option(  # noqa: RUF009 - option makes a field
        [],
        "augmentations of training images, applied in this order: names from `cl-ovq list augmentations`",
        parts=AUGMENTATIONS,
    )
    precision: str = option(
        "fp32",
        "autocast precision of the training step; weights, optimizer, statistics and evaluation always use fp32",
        choices=("fp32", "bf16", "fp16"),
    )
    compile: bool = option(False, "compile the passes over full batches (torch.compile; requires a compiler)")
    accumulation: int = option(1, "gradient accumulation: batches per optimizer step", minimum=1, maximum=COUNT)


@dataclass
class EvaluationConfig:
    """When and on what the model is evaluated."""

    split: str = option(
        "test",
        "data split for the results matrix: `validation` to tune hyperparameters, `test` for the final number",
        choices=("test", "validation"),
    )
    batch_size: int = option(512, "samples per evaluation step", minimum=1, maximum=COUNT)
    lengths: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "lengths in tokens at which the trained model is additionally evaluated (sequence streams)",
        minimum=1,
        maximum=LONGEST,
    )
    capacities: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "dictionary capacities with which the trained model is additionally evaluated, at each of `lengths` "
        "or at the training length (sequence streams, ovq layers with dictionary.scope=sequence)",
        minimum=1,
        maximum=COUNT,
    )
    log_length_scaling: bool = option(
        False,
        "scale the inverse temperature of attention over all tokens (softmax, ovq, vq) by log(length) / "
        "log(training length) at `lengths` beyond the training length",
    )
    length_tokens: int = option(65_536, "total number of test tokens at each of `lengths`", minimum=1, maximum=2**40)
    every_steps: int | None = option(
        None,
        "training steps between evaluations within an experience, on the experiences so far: for average "
        "anytime and worst-case accuracy; none if null",
        minimum=1,
    )
    rows: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "experiences after which the model is evaluated, in addition to the last; 0: before training; all if empty",
        minimum=0,
        maximum=10**6,
    )
    dictionary_every: int = option(1, "training steps between records of the dictionaries", minimum=1, maximum=2**62)
    stop_after: int | None = option(
        None, "number of experiences after which to stop; metrics cover only these; the whole stream if null", minimum=1
    )


@dataclass
class CheckpointConfig:
    """When the run's state is kept, so that it can go on (`cl-ovq run ... --resume`)."""

    enabled: bool = option(True, "save a checkpoint in the run's directory after every experience")
    every_steps: int | None = option(
        None, "training steps between additional checkpoints within an experience; none if null", minimum=1
    )


@dataclass
class TrackingConfig:
    """Where MLflow keeps the run."""

    enabled: bool = option(True, "log to MLflow")
    uri: str | None = option(None, "MLflow tracking server or store; a SQLite file next to the runs if null")
    experiment: str | None = option(None, "MLflow experiment; the stream's name and scenario if null")
    run_name: str | None = option(None, "run name; model, strategy and seed if null")
    log_model: bool = option(True, "register the trained model with MLflow")
    tags: dict[str, str] = option({}, "additional run tags, or new values for built-in ones")  # noqa: RUF009 - option makes a field


@dataclass
class ExperimentConfig:
    """One experiment, from data to tracking."""

    stream: StreamConfig
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    # Of the mixers, of the head and of the strategy; None where these have no such section.
    dictionary: ChunkOptions | None = None
    memory: MemoryOptions | None = None
    learner: LearnerOptions | None = None
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    imports: list[str] = option(  # noqa: RUF009 - option makes a field
        [],
        "modules (my_lab.parts) and files (./parts.py, relative to this file) that register your own parts",
    )
    seed: int = option(0, "base random seed", minimum=0)
    seeds: int = option(
        1,
        "number of runs with consecutive seeds, starting at `seed`; their metrics are aggregated",
        minimum=1,
        maximum=MOST_SEEDS,
    )
    device: str = option("auto", "`auto`, `cpu`, `cuda` or `cuda:N`")
    threads: int | None = option(None, "CPU threads for PyTorch; PyTorch's default if null", minimum=1, maximum=4096)
    figures: bool = option(True, "draw figures at the end of the run")
    figure_format: str = option("png", "figure format", choices=FIGURE_FORMATS)
    output_dir: str | None = option(None, "output directory; a new one under `runs/` if null")
    # Of keys whose values the environment has a part in: the text that is stored, and the value that it stands for.
    unresolved: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False, compare=False)


# What every section has, whatever parts it names; sections that only some parts open are not here.
SECTIONS: dict[str, Any] = {
    "stream": StreamName,
    **{
        field.name: field.default_factory
        for field in dataclasses.fields(ExperimentConfig)
        if isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory)
    },
}
SCALARS = tuple(
    field
    for field in dataclasses.fields(ExperimentConfig)
    if field.name not in (*SECTIONS, "dictionary", "memory", "learner", "unresolved")
)
Scalars: Any = dataclasses.make_dataclass("Scalars", [(f.name, f.type, field_of(f)) for f in SCALARS])
