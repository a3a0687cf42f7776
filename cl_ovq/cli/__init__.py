"""The command line."""

from cl_ovq.cli.app import main

__all__ = ["main"]
