"""Where a learner's weights come from: learned before the stream begins, once for all runs, or a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cl_ovq.errors import UserError, first_line
from cl_ovq.in_context.learner import InContextLearner
from cl_ovq.in_context.pretraining import PretrainingOptions, gaussian_episodes, pretrain
from cl_ovq.mixers import StackOptions, build_mixers
from cl_ovq.options import WIDEST, option
from cl_ovq.registry import Part, Registry
from cl_ovq.seeding import derive_seed, unchanged_randomness
from streams import StreamDataError
from streams.files import sha256_of
from streams.progress import progress

FORMAT = 1  # of a file of weights, and of what pretraining draws: raised where the same options give other weights
INDIFFERENT = ("implementation", "path", "sha256", "log_length_scaling")  # keys that decide no weight

PACKAGED = Path(__file__).with_name("pretrained.pt")

# Given the options of the section `learner`, the learner, what decides its weights, and the seed; changes the learner.
WeightsBuilder = Callable[[Any, InContextLearner, Mapping[str, Any], int], None]
WEIGHTS: Registry[Part[WeightsBuilder]] = Registry("source of weights", Part, plural="sources of weights")


@dataclass
class LearnerOptions(StackOptions):
    """The network that learns in its state."""

    mlp_ratio: float = option(
        2.0, "hidden features of a block's MLP, in multiples of width", exclusive_minimum=0, maximum=1024
    )
    features: int = option(
        64, "features that it takes; more of an encoder's are projected at random", minimum=1, maximum=WIDEST
    )
    code: int = option(64, "features of a class's code", minimum=1, maximum=WIDEST)
    log_length_scaling: bool = option(
        False,
        "scale the inverse temperature of attention over all tokens (softmax, ovq, vq) by log(tokens) / log(trained "
        "tokens) in streams longer than the longest episode that the weights were learned on",
    )
    weights: str = option("gaussian_classes", "where its weights come from", parts=WEIGHTS)
    weights_seed: int | None = option(
        None, "seed of weights, codes and projection; the run's if null", minimum=0, maximum=2**62
    )


@dataclass
class ReadOptions:
    """Which weights are read."""

    sha256: str | None = option(
        None, "checksum of the file of weights; the run fills it in, and refuses other weights where it is given"
    )


@dataclass
class FileOptions(ReadOptions):
    """A file of weights."""

    path: str | None = option(None, "file of weights that `cl-ovq pretrain` wrote; must be given")


def bare_learner(options: LearnerOptions, dictionary: Any) -> InContextLearner:
    """Build a learner with random weights; see `build_learner`."""
    return InContextLearner(
        features=options.features,
        code=options.code,
        width=options.width,
        mixers=build_mixers(options, dictionary),
        hidden=max(1, round(options.mlp_ratio * options.width)),
        log_length_scaling=options.log_length_scaling,
    )


def build_learner(options: LearnerOptions, dictionary: Any, seed: int) -> InContextLearner:
    """Build a learner, with weights.

    Args:
        options: the section `learner`.
        dictionary: the section `dictionary`; None where no mixer has one.
        seed: of its weights.

    Raises:
        UserError: the weights cannot be had, or are another learner's.
    """
    with unchanged_randomness():
        torch.manual_seed(derive_seed(seed, "learner"))
        learner = bare_learner(options, dictionary)
        WEIGHTS[options.weights].build(options, learner, deciding(options, dictionary), seed)
    return learner


def deciding(options: LearnerOptions, dictionary: Any) -> dict[str, Any]:
    """Return what decides a learner's weights beside the seed, by section."""
    given = {"learner": options, "dictionary": dictionary}
    return {
        section: {key: value for key, value in dataclasses.asdict(of).items() if key not in INDIFFERENT}
        for section, of in given.items()
        if of is not None
    }


@WEIGHTS.enter(
    "gaussian_classes",
    "learned before the stream begins, on episodes of synthetic classes, once for all runs of the same options",
    options=PretrainingOptions,
)
def from_gaussian_classes(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Learn weights on synthetic classes, or read those that an earlier run of these options learned."""
    known = json.dumps([FORMAT, sections, seed, torch.__version__], sort_keys=True)
    path = _folder() / f"{hashlib.sha256(known.encode()).hexdigest()}.pt"
    if path.exists():
        try:
            read_weights(learner, path, sections)
            return
        except UserError:  # it is damaged, and is written anew
            pass
    generator = torch.Generator().manual_seed(derive_seed(seed, "episodes"))
    with progress("learning the learner's weights", options.steps) as advance:
        pretrain(learner, options, generator, gaussian_episodes, lambda step, loss, accuracy: advance(1))
    write_weights(learner, path, sections, seed)


@WEIGHTS.enter(
    "pretrained",
    "weights that come with the package: of an OVQ layer, learned on gaussian_classes (`make pretrained`)",
    options=ReadOptions,
)
def from_package(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Read the weights that come with the package."""
    read_weights(learner, PACKAGED, sections, options.sha256)


@WEIGHTS.enter("file", "a file that `cl-ovq pretrain` wrote", options=FileOptions)
def from_file(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Read weights from a file."""
    if options.path is None:
        raise UserError("learner.path is missing: name the file of weights")
    read_weights(learner, Path(options.path).expanduser(), sections, options.sha256)


def known_sha256(options: ReadOptions) -> str | None:
    """Return the checksum of the weights that would be read; None where there are none."""
    path = getattr(options, "path", str(PACKAGED))
    try:
        return None if path is None else sha256_of(Path(path).expanduser())
    except StreamDataError:
        return None


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
                f"learner.weights: those in {path} are others than those of the run: their sha256 is {found}, and was "
                f"{expected}"
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
        theirs, weights = content["sections"]["learner"], content["weights"]
        for key, value in sections["learner"].items():
            if key not in PRETRAINING and theirs.get(key, value) != value:
                raise UserError(f"learner.{key}: {value}, and the weights in {path} were learned with {theirs[key]}")
    except OSError as error:
        raise UserError(f"learner: cannot read {path}: {error.strerror}") from error
    except StreamDataError as error:
        raise UserError(f"learner: {error}") from error
    except UserError:
        raise
    except Exception as error:  # of whatever kind: pickle's, zip's, or a key that is missing
        raise UserError(f"learner: {path} is not a file of weights: {first_line(error)}") from error
    try:
        learner.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"learner: the weights in {path} are of another learner: {first_line(error)}") from error


PRETRAINING = frozenset({"weights", "weights_seed", *(field.name for field in dataclasses.fields(PretrainingOptions))})


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cl-ovq", "learners")
