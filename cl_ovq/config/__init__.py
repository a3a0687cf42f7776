"""The typed configuration of an experiment, and how it is read."""

from cl_ovq.config.load import find_experiment, from_dict, load_config, load_stream_config, to_dict
from cl_ovq.config.schema import (
    DictionaryConfig,
    EvaluationConfig,
    ExperimentConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    StrategyConfig,
    StreamConfig,
    TrackingConfig,
)

__all__ = [
    "DictionaryConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "MemoryConfig",
    "ModelConfig",
    "OptimizerConfig",
    "StrategyConfig",
    "StreamConfig",
    "TrackingConfig",
    "find_experiment",
    "from_dict",
    "load_config",
    "load_stream_config",
    "to_dict",
]
