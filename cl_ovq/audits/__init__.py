"""Audits of runs: what reviewers ask of continual-learning code, measured one question at a time."""

from cl_ovq.audits.findings import Audit, Finding
from cl_ovq.audits.run import CHECKS, audit_config, audit_finished, finished_run

__all__ = ["CHECKS", "Audit", "Finding", "audit_config", "audit_finished", "finished_run"]
