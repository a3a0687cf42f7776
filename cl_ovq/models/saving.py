"""A trained model as one file, dictionaries included, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from cl_ovq.config import ExperimentConfig, from_stored, to_dict
from cl_ovq.encoders import EncodedModel
from cl_ovq.encoders.frozen import NamedEncoder, state_of
from cl_ovq.encoders.stream import EncodedStream
from cl_ovq.errors import UserError
from cl_ovq.imports import digests, stored_hint
from cl_ovq.models.gradient_free import GradientFreeHead

if TYPE_CHECKING:
    from cl_ovq.encoders import AnyEncoderOptions
    from streams import Stream, TensorSamples


@dataclass(frozen=True)
class SavedModel:
    """A model as it was saved.

    Attributes:
        model: in evaluation mode, on the CPU.
        config: the configuration that it was built from.
        sample_shape: channels, height and width of its inputs, or the features of vectors; empty of texts, None of
            sequences.
        n_classes: its outputs.
        task_labels: whether it takes the samples' task labels as its second argument.
    """

    model: nn.Module
    config: ExperimentConfig
    sample_shape: tuple[int, ...] | None
    n_classes: int
    task_labels: bool


def save_model(path: Path, model: nn.Module, config: ExperimentConfig, stream: Stream) -> None:
    """Write a model's weights and dictionaries with what it takes to build it again; no code is in the file.

    Where it learned from the features of a frozen encoder the encoder is in the file, too: what is read back takes
    images or texts.

    Raises:
        UserError: the encoder's weights are not there any more.
    """
    from cl_ovq.models.heads import unwrap

    torch.save(
        {
            "state": state_of(model),
            "head": _saved_head(model),
            "encoder": _saved_encoder(stream) if isinstance(stream, EncodedStream) else None,
            "recipe": getattr(unwrap(model), "recipe", None),
            "config": to_dict(config),
            "imports": list(digests()),
            "kind": stream.kind,
            "sample_shape": getattr(stream.samples, "sample_shape", None),
            "features": getattr(stream.samples, "features", None),
            "n_classes": stream.n_classes,
            "scenario": stream.scenario,
            "classes_per_experience": stream.classes_per_experience,
        },
        path,
    )


def _saved_head(model: nn.Module) -> dict[str, Any] | None:
    """Return what a head that learns without gradients is made of, which a strategy put there; None of others."""
    from cl_ovq.models.heads import RememberingHead, unwrap

    head = getattr(unwrap(model), "head", None)
    if not isinstance(head, RememberingHead) or not isinstance(head.memory, GradientFreeHead):
        return None
    return {"kind": type(head.memory).__name__, "settings": head.memory.settings}


def _put_head(model: nn.Module, config: ExperimentConfig, kind: str, settings: dict[str, Any]) -> None:
    """Put a head that learns without gradients into a model, as its strategy did."""
    import cl_ovq.in_context.head  # noqa: F401 - as those of the next line
    from cl_ovq.models import discriminant, fecam, neighbours, ridge, value_ridge  # noqa: F401 - their classes are found below
    from cl_ovq.models.heads import RememberingHead, unwrap

    network = unwrap(model)
    (made,) = [cls for cls in _subclasses(GradientFreeHead) if cls.__name__ == kind][-1:]
    sizes = {"features": network.head.in_features, "classes": network.head.out_features}
    network.head = RememberingHead(made.made_again(config, **sizes, **settings), None)


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    return [found for cls in kind.__subclasses__() for found in (cls, *_subclasses(cls))]


def _saved_encoder(stream: EncodedStream) -> dict[str, Any]:
    encoder, shape = stream.encoder, cast("TensorSamples", stream.raw.samples).sample_shape
    return {"state": state_of(encoder.network()), "recipe": encoder.recipe, "sample_shape": shape}


def load_model(path: Path) -> SavedModel:
    """Read a model that `save_model` wrote.

    Raises:
        UserError: it is made of parts that are not imported.
    """
    from cl_ovq.models.build import build_model

    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        config = from_stored(saved["config"])
    except UserError as error:
        hint = stored_hint(saved.get("imports"))
        raise UserError(f"{path.name}: {error}" + ("" if hint in str(error) else hint)) from error
    shape = saved.get("sample_shape", saved.get("image_shape"))  # as files from before vectors call it
    # What building a model asks of its stream; the samples themselves are not needed.
    stream = SimpleNamespace(
        kind=saved["kind"],
        samples=SimpleNamespace(sample_shape=shape, features=saved["features"]),
        n_classes=saved["n_classes"],
        scenario=saved["scenario"],
        classes_per_experience=saved["classes_per_experience"],
    )
    model = build_model(config, cast("Stream", stream), saved.get("recipe"))
    if (head := saved.get("head")) is not None:
        _put_head(model, config, **head)
    model.load_state_dict(saved["state"])
    if (encoder := saved.get("encoder")) is not None:
        options = cast("AnyEncoderOptions", config.encoder)
        named = NamedEncoder(config.encoder.name, options, encoder["recipe"], options.sha256)
        model, shape = EncodedModel(named.restored(encoder["state"]), model), encoder["sample_shape"]
    return SavedModel(model.eval(), config, shape, saved["n_classes"], saved["scenario"] == "task_incremental")
