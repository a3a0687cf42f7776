"""Files of a learner's weights, with what decided them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cl_ovq.errors import UserError, first_line
from cl_ovq.in_context.episodes import EpisodeOptions  # which has all that `SineEpisodeOptions` has
from streams import StreamDataError
from streams.files import sha256_of

FORMAT = 4  # of a file of weights, and of what pretraining draws: raised where the same options give other weights
# Keys that say how weights were learned, and nothing of the network that they fit.
OF_PRETRAINING = frozenset(
    {"weights", "weights_seed", "sha256", *(field.name for field in dataclasses.fields(EpisodeOptions))}
)


def write_weights(learner: nn.Module, path: Path, sections: Mapping[str, Any], seed: int) -> None:
    """Write weights to a file, all of it or nothing.

    Args:
        learner: whose weights.
        path: of the file.
        sections: what decided them, see `deciding`.
        seed: that they were drawn and learned with.

    Raises:
        UserError: it cannot be written.
    """
    content = {"format": FORMAT, "sections": dict(sections), "seed": seed, "weights": learner.state_dict()}
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, beside)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_weights(learner: nn.Module, path: Path, sections: Mapping[str, Any], expected: str | None = None) -> None:
    """Read weights from a file, which is not trusted: nothing in it is run.

    Args:
        learner: gets them.
        path: of the file.
        sections: what decides the weights of this learner, see `deciding`. Its dictionary may be another one than that
            of the weights: no weight is made for its size.
        expected: checksum that the file must have; any if None.

    Raises:
        UserError: it is no file of weights, or the weights are of another learner.
    """
    try:
        if expected is not None and (found := sha256_of(path)) != expected:
            raise UserError(
                f"learner.weights: {path} differs from the run's weights: sha256 is {found}, expected {expected}"
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
        theirs, weights = content["sections"]["learner"], content["weights"]
        for key, value in sections["learner"].items():
            if key not in OF_PRETRAINING and theirs.get(key, value) != value:
                raise UserError(f"learner.{key}: {value}, but the weights in {path} were trained with {theirs[key]}")
    except OSError as error:
        raise UserError(f"learner: cannot read {path}: {error.strerror}") from error
    except StreamDataError as error:
        raise UserError(f"learner: {error}") from error
    except UserError:
        raise
    except Exception as error:  # of whatever kind: pickle's, zip's, or a key that is missing
        raise UserError(f"learner: {path} is not a weights file: {first_line(error)}") from error
    try:
        learner.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"learner: the weights in {path} belong to another learner: {first_line(error)}") from error
