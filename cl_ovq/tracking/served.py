"""What MLflow runs to answer with a registered model. Read by MLflow as code: it needs nothing here but the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from cl_ovq.tracking.models import FILE


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Maps images, vectors or texts, and task labels where the model takes them, to logits."""

    def load_context(self, context: Any) -> None:
        """Build the model and load its weights and dictionaries."""
        from cl_ovq.models.saving import load_model

        self.saved = load_model(Path(context.artifacts[FILE]))

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Map images `[B, channels, height, width]`, vectors `[B, F]` or texts `[B]` to logits `[B, n_classes]`.

        Args:
            context: of the model, given by MLflow.
            model_input: the samples; or `images` (`vectors`, `texts`) and `task_labels` `[B]` by name.
            params: unused.
        """
        import torch

        from streams.samples import named_inputs

        name = named_inputs(self.saved.sample_shape or ())
        samples = model_input[name] if self.saved.task_labels else model_input
        inputs: list[Any] = [
            np.asarray(samples).ravel().tolist()
            if name == "texts"
            else torch.as_tensor(np.asarray(samples, np.float32))
        ]
        if self.saved.task_labels:
            inputs.append(torch.as_tensor(np.asarray(model_input["task_labels"], dtype=np.int64)))
        with torch.no_grad():
            return self.saved.model(*inputs).numpy()


mlflow.models.set_model(ServedModel())
