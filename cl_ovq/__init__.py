"""Continual-learning experiments with online vector-quantized attention."""

from cl_ovq.packages import check_packages

__version__ = "0.1.0"

check_packages()
