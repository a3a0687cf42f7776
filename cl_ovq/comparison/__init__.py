"""Comparisons of runs: differences over seeds with intervals and tests, as a table, figures and one page."""

from cl_ovq.comparison.differences import Comparison, Difference, compare
from cl_ovq.runs.groups import Group, load_group, load_groups

__all__ = ["Comparison", "Difference", "Group", "compare", "load_group", "load_groups"]
