"""The plugins, metrics and loggers of this platform for Avalanche strategies of one's own, under names that stay.

They ask nothing of a strategy but to be Avalanche's: `docs/avalanche.md` shows each in a script.
"""

from cl_ovq.evaluation.census import CensusRecorder
from cl_ovq.evaluation.dictionaries import DictionaryRecorder
from cl_ovq.evaluation.logger import MetricLogger
from cl_ovq.evaluation.matrix import MatrixRecorder
from cl_ovq.evaluation.training import TrainingLoss
from cl_ovq.learning.auxiliary import AuxiliaryLoss
from cl_ovq.learning.dictionary import DictionaryScope
from cl_ovq.learning.divergence import DivergedError, DivergenceGuard

__all__ = [
    "AuxiliaryLoss",
    "CensusRecorder",
    "DictionaryRecorder",
    "DictionaryScope",
    "DivergedError",
    "DivergenceGuard",
    "MatrixRecorder",
    "MetricLogger",
    "TrainingLoss",
]
