"""Trained models in MLflow: registered with a signature, and answering as they did when they were trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

NAME = "model"
FILE = "model"  # the artifact of the model's file
SERVED = Path(__file__).with_name("served.py")
REQUIREMENTS = ("cl-ovq", "torch")


def log_model(uri: str, experiment_id: str, run_id: str, path: Path, record: Mapping[str, Any]) -> None:
    """Register a run's model.

    Args:
        uri: of the store.
        experiment_id: of the run's experiment.
        run_id: of the run.
        path: file of the model.
        record: `inputs`, the shape of each by name, and `outputs`, the number of classes.
    """
    import mlflow
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    types: dict[str, np.dtype[Any]] = {"task_labels": np.dtype(np.int64), "texts": np.dtype(np.str_)}
    named = len(record["inputs"]) > 1  # MLflow takes a bare array where there is one input without a name
    inputs: list[Any] = [
        TensorSpec(types.get(name, np.dtype(np.float32)), shape, name if named else None)
        for name, shape in record["inputs"].items()
    ]
    outputs: list[Any] = [TensorSpec(np.dtype(np.float32), (-1, record["outputs"]))]
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=experiment_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Model.log(
            artifact_path=None,
            name=NAME,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(SERVED),
            artifacts={FILE: path.absolute().as_uri()},  # a path is taken for an address, `?` and `#` in it too
            signature=ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs)),
            # Named, since finding them out imports the model in another process.
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
        )
