"""The configuration tree: every field with its type, default, range and meaning.

One tree describes one experiment. Its sections are OmegaConf structured configs; which options the section `stream` has
depends on the stream that it names (`streams.STREAMS[name].Options`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kernels import ASSIGNMENT, GROWTH, IMPLEMENTATIONS, LEARNING_RATES, READ_OUTS, SEEDS

CLASS_GROWTH = ("plateau", "all", "linear", "dirichlet")
POSITIONS = ("none", "rotary")
SCOPES = ("sequence", "task", "stream")
TRAIN_ENCODER = ("always", "first_experience", "never")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    exclusive_minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a field with its meaning and the values it may take.

    Args:
        default: the value when the configuration says nothing; a list or dict is copied for each use.
        help: what the field means, with its unit.
        choices: the names it may hold.
        minimum: the smallest value.
        exclusive_minimum: a value that it must exceed.
        maximum: the largest value.
    """
    limits = {
        "choices": choices,
        "minimum": minimum,
        "exclusive_minimum": exclusive_minimum,
        "maximum": maximum,
    }
    metadata = {"help": help} | {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, list | dict):
        kind = type(default)
        return field(default_factory=lambda: kind(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class StreamConfig:
    """The task stream: its name, and the options that belong to streams of that name."""

    name: str
    options: Any


@dataclass
class ModelConfig:
    """The network."""

    name: str = option("patch_transformer", "model: a name from `cl-ovq list models`")
    head: str = option(
        "linear",
        "what names the class: a linear map, or a memory that learns without gradients (beside a linear map where an "
        "encoder is to be trained)",
        choices=("linear", "memory"),
    )
    train_encoder: str = option(
        "always",
        "when all but the head learns by gradients: in every experience, in the first one only, or never (random "
        "features)",
        choices=TRAIN_ENCODER,
    )
    mixer: str = option("ovq", "sequence mixer of every layer: a name from `cl-ovq list mixers`")
    pattern: list[str] | None = option(  # noqa: RUF009 - option makes a field
        None, "mixers of the layers in turn, repeated over the depth, in place of `mixer`: [sliding_window, ovq]"
    )
    width: int = option(64, "features per token or hidden layer, or random features or filters", minimum=1)
    depth: int = option(2, "number of blocks, or of hidden layers", minimum=1)
    heads: int = option(4, "attention heads; divides width", minimum=1)
    key_value_heads: int | None = option(
        None, "heads of keys and values, and so dictionaries; as many as heads if null; divides heads (ovq)", minimum=1
    )
    convolution: int = option(
        0, "tokens seen by a short causal convolution of a mixer's queries, keys and values; 0: none", minimum=0
    )
    position: str = option(
        "none", "positions in softmax attention: none, or rotary; sliding_window's are rotary", choices=POSITIONS
    )
    window: int = option(64, "tokens that a query sees, its own included (sliding_window)", minimum=1)
    codes: int = option(512, "codes of a head's codebook (vq)", minimum=1)
    code_decay: float = option(0.99, "decay of the running means that make a codebook (vq)", minimum=0, maximum=0.9999)
    commitment: float = option(1e-2, "weight of the distance of keys to their codes in the loss (vq)", minimum=0)
    state_size: int = option(64, "features of a key and a query (mamba2)", minimum=1)
    longest_step: float = option(
        0.1,
        "longest step of a head at first, the shortest being 0.001 (mamba2, gated_delta): steps make a state forget; "
        "few heads need short ones to see far",
        minimum=0.001,
    )
    slots: int = option(64, "slots of a head's memory (gated_slot)", minimum=1)
    patch_size: int = option(2, "side of a square patch in pixels; divides the image's sides", minimum=1)
    mlp_ratio: float = option(2.0, "hidden features of a block's MLP, in multiples of width", exclusive_minimum=0)
    parameters: int | None = option(
        None,
        "weights of the whole model, to compare mixers alike: the MLPs get the size that makes it so, in place of "
        "mlp_ratio (sequence_model)",
        minimum=1,
    )
    tied: bool = option(False, "whether the head is the embedding's transpose (sequence_model)")
    dropout: float = option(0.0, "share of features dropped after mixer and MLP", minimum=0, maximum=0.99)
    implementation: str = option("auto", "implementation of the OVQ operator", choices=IMPLEMENTATIONS)


@dataclass
class DictionaryConfig:
    """The key and value dictionaries of OVQ layers (ignored by other mixers)."""

    scope: str = option(
        "stream",
        "how long a dictionary lives: a sequence, or, as one that all sequences share, an experience or all tasks",
        choices=SCOPES,
    )
    capacity: int = option(512, "slots per layer and head (N)", minimum=1)
    weight: float | None = option(
        1.0,
        "tokens that a shared dictionary counts for beside a sequence's own, learned per head from here on; as many as "
        "were written if null",
        exclusive_minimum=0,
    )
    chunk_size: int = option(64, "tokens that are read exactly before they are written (L)", minimum=1)
    growth: str = option("plateau", "schedule of slots over tokens", choices=tuple(GROWTH))
    growth_rate: float = option(0.125, "slots per token of `linear` growth", exclusive_minimum=0)
    concentration: float = option(128.0, "alpha of `dirichlet` growth", exclusive_minimum=0)
    novelty_threshold: float = option(
        0.7, "similarity to every slot below which a token may seed a slot (`novelty` growth)", minimum=-1, maximum=1
    )
    seeds: str = option("spread", "which tokens of a chunk seed the new slots", choices=tuple(SEEDS))
    assignment: str = option(
        "all",
        "slots that the other tokens may join: those before the chunk, or its seeds too",
        choices=tuple(ASSIGNMENT),
    )
    learning_rate: str = option("adaptive", "step of a slot's means", choices=tuple(LEARNING_RATES))
    rate: float = option(0.05, "rho of the `constant` and `floored` learning rates", exclusive_minimum=0, maximum=1)
    read_out: str = option("raw", "logits of the slots", choices=tuple(READ_OUTS))
    half_life: int | None = option(
        None, "tokens after which all counts of a shared dictionary are halved; never if null", minimum=1
    )
    refresh: bool = option(
        False,
        "whether a shared dictionary is written anew from the replay buffer, by the encoder as it is then, after every "
        "experience",
    )
    sums: bool = option(
        False,
        "whether a shared dictionary keeps the sums that each task wrote, as much again per task, so that a task can "
        "be forgotten",
    )


@dataclass
class MemoryConfig:
    """The memory head (`model.head: memory`; ignored otherwise)."""

    capacity: int = option(2000, "slots of all classes together (N)", minimum=1)
    chunk_size: int = option(32, "samples that are written together (L)", minimum=1)
    growth: str = option("plateau", "schedule of a class's slots over its own samples", choices=tuple(CLASS_GROWTH))
    beta: float | None = option(
        None, "inverse temperature of the read-out; from the number of features if null", exclusive_minimum=0
    )
    shrinkage: float = option(0.3, "of the covariance, towards a multiple of the identity", minimum=0, maximum=1)
    class_weight: float = option(0.05, "power of the linear discriminant that is multiplied in", minimum=0)
    confidence: float = option(0.6, "power of the class probabilities", exclusive_minimum=0)
    normalise: bool = option(True, "whether features are scaled to one length first")
    prior: str = option(
        "balanced", "of the classes seen: all alike, or by their samples", choices=("balanced", "counts")
    )
    storage: str = option("float32", "of the slots' means", choices=("float32", "float16", "int8"))
    calibrate: bool = option(
        False,
        "whether beta, shrinkage, class_weight and confidence are chosen on validation data after each experience",
    )


@dataclass
class StrategyConfig:
    """How the model learns from the stream. Fields that a strategy does not use are ignored by it."""

    name: str = option("naive", "strategy: a name from `cl-ovq list strategies`")
    epochs: int = option(1, "passes over each experience", minimum=1)
    batch_size: int = option(32, "new samples per training step", minimum=1)
    memory_size: int = option(200, "past samples in memory (strategies with one)", minimum=1)
    memory_bytes: int | None = option(
        None, "bytes of memory, in the place of memory_size: as stored, and their logits (der, derpp)", minimum=1
    )
    memory_batch_size: int | None = option(
        None, "past samples per training step; as many as new ones if null", minimum=1
    )
    memory_policy: str = option(
        "class_balanced",
        "which past samples are kept; gem and agem keep as many of every experience, and so does class_balanced of "
        "sequences, which have no classes",
        choices=("class_balanced", "experience_balanced", "reservoir"),
    )
    strength: float | None = option(
        None, "weight of the penalty (l2, ewc, online_ewc, si, mas, lwf); the method's own default if null", minimum=0
    )
    importance_samples: int = option(
        500, "samples of each experience that importance is estimated on (ewc, online_ewc, mas)", minimum=1
    )
    importance_decay: float = option(1.0, "what is left of importance an experience later (online_ewc)", minimum=0)
    damping: float = option(0.1, "xi, added to squared distances (si)", exclusive_minimum=0)
    temperature: float = option(2.0, "of the teacher's predictions (lwf, but for values)", exclusive_minimum=0)
    margin: float = option(0.5, "gamma, least weight of past gradients in a projection (gem)", minimum=0)
    alpha: float = option(0.5, "weight of past samples' logits (der, derpp)", minimum=0)
    beta: float = option(0.5, "weight of past samples' targets (derpp)", minimum=0)
    candidates: int = option(100, "past samples among which each step chooses (mir)", minimum=1)
    shrinkage: float = option(1e-4, "of the covariance, towards the identity (slda)", minimum=0, maximum=1)
    patience: int = option(2, "epochs without improvement before an experience ends (early_stopping)", minimum=1)


@dataclass
class OptimizerConfig:
    """The optimizer of the network's weights."""

    name: str = option("adamw", "optimizer: a name from `cl-ovq list optimizers`")
    learning_rate: float = option(1e-3, "step size", exclusive_minimum=0)
    weight_decay: float = option(0.0, "weight decay", minimum=0)
    momentum: float = option(0.0, "momentum (sgd)", minimum=0, maximum=1)


@dataclass
class EvaluationConfig:
    """When and on what the model is evaluated."""

    stream: str = option(
        "test",
        "stream of the results matrix: `validation` to choose hyper-parameters, `test` for the final number",
        choices=("test", "validation"),
    )
    batch_size: int = option(512, "samples per evaluation step", minimum=1)
    lengths: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "lengths of test sequences, in tokens, at which the trained model is evaluated beside (sequence streams)",
        minimum=1,
    )
    capacities: list[int] = option(  # noqa: RUF009 - option makes a field
        [],
        "capacities of sequences' dictionaries with which the trained model is evaluated beside, at each of `lengths` "
        "or at the length that was trained on (sequence streams, ovq layers with dictionary.scope=sequence)",
        minimum=1,
    )
    sharpen: bool = option(
        False,
        "whether attention over all tokens is sharpened at `lengths` beyond the trained one, where it spreads more: "
        "inverse temperature times log(length) / log(trained length) (softmax, ovq, vq)",
    )
    length_tokens: int = option(
        65_536, "tokens of test sequences at each of `lengths`, all sequences together", minimum=1
    )
    every_steps: int | None = option(
        None,
        "training steps between two evaluations inside an experience, on the experiences so far: for average anytime "
        "and worst-case accuracy; none if null",
        minimum=1,
    )
    dictionary_every: int = option(1, "training steps between two records of the dictionaries", minimum=1)
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
    model: ModelConfig = field(default_factory=ModelConfig)
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = option(0, "the number from which every source of randomness is derived", minimum=0)
    seeds: int = option(1, "runs with consecutive seeds, from `seed` on; their metrics are aggregated", minimum=1)
    device: str = option("auto", "`auto`, `cpu`, `cuda` or `cuda:N`")
    threads: int | None = option(None, "CPU threads of PyTorch; its own choice if null", minimum=1)
    output_dir: str | None = option(None, "directory of the run's results; a new one under `runs/` if null")
