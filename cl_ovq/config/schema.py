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
    head: str = option("linear", "what names the class: a name from `cl-ovq list heads`", parts=HEADS)
    train_encoder: str = option(
        "always",
        "when all but the head learns by gradients: in every experience, in the first one only, or never (random "
        "features)",
        choices=("always", "first_experience", "never"),
    )


@dataclass
class StrategyConfig:
    """How the model learns from the stream: what every strategy has."""

    name: str = option("naive", "strategy: a name from `cl-ovq list strategies`", parts=STRATEGIES)
    epochs: int = option(1, "passes over each experience", minimum=1, maximum=1_000_000)
    batch_size: int = option(32, "new samples per training step", minimum=1, maximum=COUNT)


@dataclass
class OptimizerConfig:
    """The optimizer of the network's weights."""

    name: str = option("adamw", "optimizer: a name from `cl-ovq list optimizers`", parts=OPTIMIZERS)
    schedule: str = option(
        "constant",
        "course of the learning rate over each experience: a name from `cl-ovq list schedules`",
        parts=SCHEDULES,
    )


@dataclass
class TrainingConfig:
    """How a training step is made."""

    augmentation: list[str] = option(  # noqa: RUF009 - option makes a field
        [],
        "what training images are changed by, in this order: names from `cl-ovq list augmentations`",
        parts=AUGMENTATIONS,
    )
    precision: str = option(
        "fp32",
        "numbers that the pass over a training batch computes with where they bear it (autocast); weights, optimizer, "
        "statistics and evaluation are fp32 always",
        choices=("fp32", "bf16", "fp16"),
    )
    compile: bool = option(False, "compile the passes over full batches (torch.compile; needs a compiler)")
    accumulation: int = option(1, "batches whose gradients make one step of the optimizer", minimum=1, maximum=COUNT)


@dataclass
class EvaluationConfig:
    """When and on what the model is evaluated."""

    split: str = option(
        "test",
        "samples of the results matrix: `validation` to choose hyper-parameters, `test` for the final number",
        choices=("test", "validation"),
    )
    batch_size: int = option(512, "samples per evaluation step", minimum=1, maximum=COUNT)
    lengths: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "lengths of test sequences, in tokens, at which the trained model is evaluated beside (sequence streams)",
        minimum=1,
        maximum=LONGEST,
    )
    capacities: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "capacities of sequences' dictionaries with which the trained model is evaluated beside, at each of `lengths` "
        "or at the length that was trained on (sequence streams, ovq layers with dictionary.scope=sequence)",
        minimum=1,
        maximum=COUNT,
    )
    log_length_scaling: bool = option(
        False,
        "scale the inverse temperature of attention over all tokens (softmax, ovq, vq) by log(length) / log(trained "
        "length) at `lengths` beyond the trained one",
    )
    length_tokens: int = option(
        65_536, "tokens of test sequences at each of `lengths`, all sequences together", minimum=1, maximum=2**40
    )
    every_steps: int | None = option(
        None,
        "training steps between two evaluations inside an experience, on the experiences so far: for average anytime "
        "and worst-case accuracy; none if null",
        minimum=1,
    )
    rows: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "experiences after which the model is evaluated, 0 for before training, beside the last one; after every one "
        "if empty",
        minimum=0,
        maximum=10**6,
    )
    dictionary_every: int = option(
        1, "training steps between two records of the dictionaries", minimum=1, maximum=2**62
    )
    stop_after: int | None = option(
        None, "experiences after which the run ends, and which its metrics are of; the whole stream if null", minimum=1
    )


@dataclass
class CheckpointConfig:
    """When the run's state is kept, so that it can go on (`cl-ovq run ... --resume`)."""

    enabled: bool = option(True, "whether to keep a checkpoint after every experience, in the run's directory")
    every_steps: int | None = option(None, "training steps between two more within an experience", minimum=1)


@dataclass
class TrackingConfig:
    """Where MLflow keeps the run."""

    enabled: bool = option(True, "whether to log to MLflow")
    uri: str | None = option(None, "MLflow tracking server or store; a SQLite file beside the runs if null")
    experiment: str | None = option(None, "MLflow experiment; the stream's name and scenario if null")
    run_name: str | None = option(None, "name of the run; model, strategy and seed if null")
    log_model: bool = option(True, "whether the trained model is registered with MLflow")
    tags: dict[str, str] = option({}, "further tags of the run, or other values for its own")  # noqa: RUF009 - option makes a field


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
        "modules (my_lab.parts) and files (./parts.py, from this file's folder) that enter parts of your own",
    )
    seed: int = option(0, "base random seed", minimum=0)
    seeds: int = option(
        1, "runs with consecutive seeds, from `seed` on; their metrics are aggregated", minimum=1, maximum=MOST_SEEDS
    )
    device: str = option("auto", "`auto`, `cpu`, `cuda` or `cuda:N`")
    threads: int | None = option(None, "CPU threads of PyTorch; its own choice if null", minimum=1, maximum=4096)
    figures: bool = option(True, "whether a run draws its figures at its end")
    figure_format: str = option("png", "kind of file of a run's figures", choices=FIGURE_FORMATS)
    output_dir: str | None = option(None, "directory of the run's results; a new one under `runs/` if null")
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
