"""A trained model as one file, dictionaries included, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from cl_ovq.config import ExperimentConfig, from_stored, to_dict

if TYPE_CHECKING:
    from streams import Stream


@dataclass(frozen=True)
class SavedModel:
    """A model as it was saved.

    Attributes:
        model: in evaluation mode, on the CPU.
        config: the configuration that it was built from.
        sample_shape: channels, height and width of its inputs, or the features of vectors; None of sequences.
        n_classes: its outputs.
        task_labels: whether it takes the samples' task labels as its second argument.
    """

    model: nn.Module
    config: ExperimentConfig
    sample_shape: tuple[int, ...] | None
    n_classes: int
    task_labels: bool


def save_model(path: Path, model: nn.Module, config: ExperimentConfig, stream: Stream) -> None:
    """Write a model's weights and dictionaries with what it takes to build it again; no code is in the file."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    torch.save(
        {
            "state": state,
            "config": to_dict(config),
            "kind": stream.kind,
            "sample_shape": getattr(stream.samples, "sample_shape", None),
            "features": getattr(stream.samples, "features", None),
            "n_classes": stream.n_classes,
            "scenario": stream.scenario,
            "classes_per_experience": stream.classes_per_experience,
        },
        path,
    )


def load_model(path: Path) -> SavedModel:
    """Read a model that `save_model` wrote."""
    from cl_ovq.models.build import build_model

    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    config = from_stored(saved["config"])
    shape = saved.get("sample_shape", saved.get("image_shape"))  # as files from before vectors call it
    # What building a model asks of its stream; the samples themselves are not needed.
    stream = SimpleNamespace(
        kind=saved["kind"],
        samples=SimpleNamespace(sample_shape=shape, features=saved["features"]),
        n_classes=saved["n_classes"],
        scenario=saved["scenario"],
        classes_per_experience=saved["classes_per_experience"],
    )
    model = build_model(config, cast("Stream", stream))
    model.load_state_dict(saved["state"])
    return SavedModel(model.eval(), config, shape, saved["n_classes"], saved["scenario"] == "task_incremental")
