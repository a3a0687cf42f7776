"""The plugins, metrics and loggers of this platform for Avalanche strategies of one's own, under names that stay.

They ask nothing of a strategy but to be Avalanche's: `docs/avalanche.md` shows each in a script.
"""

from cl_ovq.evaluation.dictionaries import DictionaryRecorder
from cl_ovq.evaluation.logger import MetricLogger
from cl_ovq.evaluation.matrix import MatrixRecorder
from cl_ovq.evaluation.slot_statistics import SlotStatisticsRecorder
from cl_ovq.evaluation.training import TrainingLoss
from cl_ovq.training.auxiliary import AuxiliaryLoss
from cl_ovq.training.dictionary import DictionaryScope
from cl_ovq.training.divergence import DivergedError, DivergenceGuard
from cl_ovq.training.plugin import Plugin

__all__ = [
    "AuxiliaryLoss",
    "DictionaryRecorder",
    "DictionaryScope",
    "DivergedError",
    "DivergenceGuard",
    "MatrixRecorder",
    "MetricLogger",
    "Plugin",
    "SlotStatisticsRecorder",
    "TrainingLoss",
]
