"""The typed configuration of an experiment, and how it is read."""

from cl_ovq.config.load import (
    check_schema,
    find_experiment,
    from_dict,
    from_stored,
    load_config,
    load_stream_config,
    to_dict,
)
from cl_ovq.config.schema import (
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    StrategyConfig,
    StreamConfig,
    TrackingConfig,
)
from cl_ovq.imports import import_inherited

__all__ = [
    "EvaluationConfig",
    "ExperimentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "StrategyConfig",
    "StreamConfig",
    "TrackingConfig",
    "check_schema",
    "find_experiment",
    "from_dict",
    "from_stored",
    "load_config",
    "load_stream_config",
    "to_dict",
]

# Whatever reads a configuration, in whatever process, finds the parts from outside.
import_inherited()
