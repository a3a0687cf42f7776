"""MLflow: where runs are kept and compared.

A run writes a journal of JSON lines into its directory, which costs microseconds; a process beside it sends the journal
to MLflow. So neither a slow nor a dead server, nor the import of MLflow, takes time from training, and a run that is
killed is still marked so. Nothing here imports torch, and MLflow only where it is used.
"""

from cl_ovq.tracking.store import RUNS, artifact_location, default_uri, open_client
from cl_ovq.tracking.tracker import NullTracker, RunKey, StoreCheck, Tracker, warm_up

__all__ = [
    "RUNS",
    "NullTracker",
    "RunKey",
    "StoreCheck",
    "Tracker",
    "artifact_location",
    "default_uri",
    "open_client",
    "warm_up",
]
