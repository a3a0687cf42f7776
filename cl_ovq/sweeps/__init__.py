"""Sweeps: experiments over a search space, run by Ray Tune on one machine or a cluster, chosen on validation data.

Nothing here imports Ray, Optuna or Avalanche until a sweep is run.
"""

from cl_ovq.sweeps.files import Sweep, find_sweep, list_sweeps, load_sweep

__all__ = ["Sweep", "find_sweep", "list_sweeps", "load_sweep"]
