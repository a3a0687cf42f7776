"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from cl_ovq.runs.checkpoints.files import NAME, read_checkpoint, write_checkpoint

__all__ = ["NAME", "read_checkpoint", "write_checkpoint"]
