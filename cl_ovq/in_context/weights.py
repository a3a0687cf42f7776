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

import numpy as np
import torch
from torch import Tensor

from cl_ovq.errors import UserError, called, own_code
from cl_ovq.in_context.episodes import Draw, DrawnFromData, EpisodeOptions, gaussian_episodes
from cl_ovq.in_context.learner import InContextLearner, ValueLearner
from cl_ovq.in_context.pretraining import pretrain
from cl_ovq.in_context.sine import SineEpisodeOptions, sine_episodes
from cl_ovq.in_context.standardisation import standardise, statistics_of
from cl_ovq.in_context.weight_files import FORMAT, read_weights, write_weights
from cl_ovq.mixers import DictionaryConfig, StackOptions, build_mixers, checked_mixers
from cl_ovq.mixers.state import tensors_of
from cl_ovq.options import WIDEST, option
from cl_ovq.registry import Part, Registry
from cl_ovq.seeding import derive_seed, unchanged_randomness
from kernels.growth import GROWTH, every_token
from streams import StreamDataError
from streams.cache import alone
from streams.features import FeatureOptions, load_features
from streams.files import sha256_of
from streams.progress import progress

INDIFFERENT = ("implementation", "path", "data", "log_length_scaling")  # keys that decide no weight

PACKAGED = Path(__file__).with_name("pretrained.pt")

# Given the options of the section `learner`, the learner, what decides its weights, and the seed; changes the learner.
WeightsBuilder = Callable[[Any, InContextLearner, Mapping[str, Any], int], None]


@dataclass(frozen=True, kw_only=True)
class Weights(Part[WeightsBuilder]):
    """A source of weights of the registry.

    Attributes:
        kind: of the streams that they are for, `classes` or `vectors`; None for both.
    """

    kind: str | None = "classes"

    def learns(self, kind: str) -> bool:
        """Return whether they are for streams of a kind, see `streams.stream.KINDS`."""
        return self.kind is None or self.kind == kind


WEIGHTS: Registry[Weights] = Registry("source of weights", Weights, plural="sources of weights")


@dataclass
class LearnerOptions(StackOptions):
    """The network that learns in its state."""

    mlp_ratio: float = option(
        2.0, "hidden size of a block's MLP, in multiples of width", exclusive_minimum=0, maximum=1024
    )
    features: int = option(64, "input features; more are reduced by a random projection", minimum=1, maximum=WIDEST)
    code: int = option(64, "size of a class code", minimum=1, maximum=WIDEST)
    log_length_scaling: bool = option(
        False,
        "scale the inverse temperature of attention over all tokens (softmax, ovq, vq) by log(tokens) / "
        "log(trained tokens) in streams longer than the longest pretraining episode",
    )
    weights: str = option("gaussian_classes", "source of the weights", parts=WEIGHTS)
    weights_seed: int | None = option(
        None, "seed for weights, codes and projection; the run's seed if null", minimum=0, maximum=2**62
    )


@dataclass
class FromFileOptions:
    """Which file it is."""

    sha256: str | None = option(
        None, "checksum of the weights or data file; filled in by the run; if given, a different file is an error"
    )


@dataclass
class ReadOptions(FromFileOptions):
    """Which weights are read."""


@dataclass
class FileOptions(ReadOptions):
    """A file of weights."""

    path: str | None = option(None, "weights file written by `cl-ovq pretrain`; required")


@dataclass
class FeaturesOptions(FromFileOptions, EpisodeOptions):
    """Episodes of the classes of a file."""

    data: str | None = option(
        None,
        "file of feature vectors with labels (.npz, .csv, .tsv, .parquet), in a format of the stream "
        "`features`; its classes must not be in the stream; required",
    )


def bare_learner(options: LearnerOptions, dictionary: Any, kind: str = "classes") -> InContextLearner:
    """Build a learner with random weights; see `build_learner`."""
    learner = ValueLearner if kind == "vectors" else InContextLearner
    return learner(
        features=options.features,
        code=options.code,
        width=options.width,
        mixers=build_mixers(options, dictionary),
        hidden=max(1, round(options.mlp_ratio * options.width)),
        log_length_scaling=options.log_length_scaling,
    )


def build_learner(options: LearnerOptions, dictionary: Any, seed: int, kind: str = "classes") -> InContextLearner:
    """Build a learner, with weights.

    Args:
        options: the section `learner`.
        dictionary: the section `dictionary`; None where no mixer has one.
        seed: of its weights.
        kind: of the stream, `classes`, or `vectors` for a `ValueLearner`.

    Raises:
        UserError: the weights cannot be had, or are another learner's.
    """
    with unchanged_randomness():
        torch.manual_seed(derive_seed(seed, "learner"))
        learner = bare_learner(options, dictionary, kind)
        _check(learner)
        sized = _sized_for_episodes(options, dictionary)
        torch.manual_seed(derive_seed(seed, "learner"))
        taught = bare_learner(options, sized, kind)
        if _shapes(taught) != _shapes(learner):  # a mixer of the user's own may have weights for each slot
            taught, sized = learner, dictionary
        what = f"learner.weights: '{options.weights}'"
        called(what, WEIGHTS[options.weights].build, options, taught, deciding(options, sized), seed)
        learner.load_state_dict(taught.state_dict())
    return learner


def _sized_for_episodes(options: LearnerOptions, dictionary: Any) -> Any:
    """Return the dictionary that weights are learned with.

    Where every token starts a slot, slots beyond the tokens of an episode change nothing but the time that it takes,
    and learners whose dictionaries differ in these alone share their weights.
    """
    longest = options.longest if isinstance(options, EpisodeOptions | SineEpisodeOptions) else None
    grows = isinstance(dictionary, DictionaryConfig) and GROWTH.get(dictionary.growth) is every_token
    if longest is None or not grows:
        return dictionary
    return dataclasses.replace(dictionary, capacity=min(dictionary.capacity, longest))


def _shapes(learner: InContextLearner) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in learner.state_dict().items()}


def _check(learner: InContextLearner) -> None:
    """Try a learner on two tokens: its mixers may be the user's own.

    Raises:
        UserError: one cannot be used.
    """
    # Tokens that differ: a mixer that looks ahead is told by that, and one that forgets.
    tokens = torch.randn(1, 2, learner.features, generator=torch.Generator().manual_seed(0))
    with (
        own_code("learner: a mixer does not take tokens", learner),
        checked_mixers(learner, "learner", states=True),
        torch.no_grad(),
    ):
        _, states = learner.eval()(tokens, None, return_state=True)
        list(tensors_of(states))


def deciding(options: LearnerOptions, dictionary: Any) -> dict[str, Any]:
    """Return what decides a learner's weights beside the seed, by section."""
    given = {"learner": options, "dictionary": dictionary}
    indifferent = (*INDIFFERENT, "sha256") if isinstance(options, ReadOptions) else INDIFFERENT
    return {
        section: {key: value for key, value in dataclasses.asdict(of).items() if key not in indifferent}
        for section, of in given.items()
        if of is not None
    }


@WEIGHTS.enter(
    "gaussian_classes",
    "pretrained before the stream begins, on episodes of synthetic classes; reused by runs with the same options",
    options=EpisodeOptions,
)
def from_gaussian_classes(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Learn weights on synthetic classes, or read those that an earlier run of these options learned."""
    _learned_once(options, learner, sections, seed, lambda: gaussian_episodes(learner.features))


@WEIGHTS.enter(
    "sine",
    "pretrained before the stream begins, on episodes of sine waves; reused by runs with the same options",
    options=SineEpisodeOptions,
    kind="vectors",
)
def from_sine(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Learn weights on sine waves, or read those that an earlier run of these options learned.

    Raises:
        UserError: the learner's samples and vectors are not of one size.
    """
    if options.code != options.features:
        raise UserError(
            f"learner.code: {options.code}, but targets have learner.features={options.features} points: use "
            f"learner.code={options.features}"
        )
    learner.deviation.fill_(1.0)  # of all waves, as they are
    _learned_once(options, learner, sections, seed, lambda: sine_episodes(learner.features))


@WEIGHTS.enter(
    "features",
    "pretrained on episodes of classes from a file of feature vectors, which must differ from the stream's classes",
    options=FeaturesOptions,
)
def from_features(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Learn weights on the classes of a file, whose mean and deviation become the learner's.

    Raises:
        UserError: it cannot be read, is another file than that of the run, or has too few classes or samples.
    """
    if options.data is None:
        raise UserError("learner.data is missing: set the file of feature vectors to train the weights on")
    try:
        found = sha256_of(Path(options.data).expanduser())
    except StreamDataError as error:
        raise UserError(f"learner.data: {error}") from error
    if options.sha256 not in (None, found):
        raise UserError(
            f"learner.data: {options.data} differs from the run's file: sha256 is {found}, expected {options.sha256}"
        )
    sections["learner"]["sha256"] = found

    def draw() -> Draw:
        x, targets = _samples(options, learner.features)
        mean, deviation = statistics_of(x)
        learner.mean.copy_(mean)
        learner.deviation.copy_(deviation)
        return DrawnFromData(standardise(x, mean, deviation), targets, options)

    _learned_once(options, learner, sections, seed, draw)


def _learned_once(
    options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int, draw: Callable[[], Any]
) -> None:
    """Learn weights, or read those that an earlier run, or one beside this one, has learned."""
    known = json.dumps([FORMAT, sections, seed, torch.__version__], sort_keys=True)
    path = _folder() / f"{hashlib.sha256(known.encode()).hexdigest()}.pt"
    if _is_read(learner, path, sections):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.with_suffix(".lock"), "waiting for a run that learns the same learner's weights"):
        if _is_read(learner, path, sections):
            return
        generator = torch.Generator().manual_seed(derive_seed(seed, "episodes"))
        drawn = draw()
        with progress("learning the learner's weights", options.steps) as advance:
            pretrain(learner, options, generator, drawn, lambda step, loss, accuracy: advance(1))
        write_weights(learner, path, sections, seed)


def _is_read(learner: InContextLearner, path: Path, sections: Mapping[str, Any]) -> bool:
    """Read weights from the cache; False where there are none, or the file is damaged and is to be written anew."""
    if not path.exists():
        return False
    try:
        read_weights(learner, path, sections)
    except UserError:
        return False
    return True


def _samples(options: FeaturesOptions, features: int) -> tuple[Tensor, Tensor]:
    """Return samples `[N, D]` and classes `[N]` of a file.

    Raises:
        UserError: it cannot be read, or has another number of features than the learner.
    """
    try:
        found = load_features(FeatureOptions(data=options.data, cache=False))
    except StreamDataError as error:
        raise UserError(f"learner.data: {str(error).removeprefix('data: ')}") from error
    if found.inputs.shape[1] != features:
        raise UserError(f"learner.features: {features}, but {options.data} has {found.inputs.shape[1]} per sample")
    return torch.from_numpy(np.array(found.inputs, dtype=np.float32)), torch.from_numpy(found.targets).long()


@WEIGHTS.enter(
    "pretrained",
    "weights shipped with the package: one OVQ layer, pretrained on gaussian_classes (`make pretrained`)",
    options=ReadOptions,
)
def from_package(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Read the weights that come with the package."""
    read_weights(learner, PACKAGED, sections, options.sha256)


@WEIGHTS.enter("file", "a file written by `cl-ovq pretrain`", options=FileOptions, kind=None)
def from_file(options: Any, learner: InContextLearner, sections: Mapping[str, Any], seed: int) -> None:
    """Read weights from a file."""
    if options.path is None:
        raise UserError("learner.path is missing: set the weights file")
    read_weights(learner, Path(options.path).expanduser(), sections, options.sha256)


def known_sha256(options: FromFileOptions) -> str | None:
    """Return the checksum of the file that would be read; None where there is none."""
    path = options.data if isinstance(options, FeaturesOptions) else getattr(options, "path", str(PACKAGED))
    try:
        return None if path is None else sha256_of(Path(path).expanduser())
    except StreamDataError:
        return None


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cl-ovq", "learners")
