"""The registry of encoders, the options that all of them have, and what an encoder's part does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from cl_ovq.errors import UserError
from cl_ovq.options import COUNT, NoOptions, option
from cl_ovq.registry import Part, Registry

RANDOM = "random"  # in the place of weights: drawn anew, the same for every run
NOT_DECIDING = ("name", "sha256", "batch_size", "cache", "cache_dir", "lora_merge")  # options that change no feature
IMAGES, TEXTS = "images", "texts"  # what encoders read
Recipe = dict[str, Any]


@dataclass
class AnyEncoderOptions:
    """What every encoder has, whatever it reads."""

    sha256: str | None = option(
        None, "checksum of the weights; filled in by the run; if given, other weights are an error"
    )
    batch_size: int = option(32, "samples per encoding batch", minimum=1, maximum=COUNT)
    cache: bool = option(True, "cache the features of a frozen encoder on disk; false: compute them for every run")
    cache_dir: str | None = option(None, "feature cache folder; cl-ovq/features in XDG_CACHE_HOME or ~/.cache if null")


@dataclass
class EncoderOptions(AnyEncoderOptions):
    """What every encoder of images has."""

    weights: str | None = option(
        None, "weights: a file (.pth, .safetensors), the name of published weights, or random; the default ones if null"
    )
    layer: str | None = option(
        None, "module whose output is used as features, e.g. layer3; the classifier's input if null"
    )
    pool: str = option(
        "mean",
        "pooling of a map [channels, height, width] or tokens [tokens, channels] into a vector: the mean, "
        "the first token, or flattened",
        choices=("mean", "first", "flatten"),
    )
    size: int | None = option(
        None,
        "height and width that images are resized to; the size that the weights expect if null",
        minimum=1,
        maximum=4096,
    )
    crop: float | None = option(
        1.0,
        "fraction of each side kept by the centre crop; null: as in the weights' own evaluation",
        exclusive_minimum=0,
        maximum=1,
    )
    normalize: bool = option(
        True,
        "normalise with the channel mean and standard deviation of the weights; false: keep values in 0 to "
        "1, as in some published protocols",
    )
    precision: str = option(
        "float32",
        "computation dtype; half-precision features are stored as float16",
        choices=("float32", "float16", "bfloat16"),
    )
    train_from: str | None = option(
        None,
        "first module to train, together with all later ones, e.g. layer4; all: the whole encoder; null: frozen",
    )
    lora_rank: int | None = option(
        None,
        "rank of LoRA adapters, which are trained instead of the weights; no LoRA if null",
        minimum=1,
        maximum=4096,
    )
    lora_alpha: float = option(
        16.0, "LoRA scale: the adapters' output is multiplied by lora_alpha / lora_rank", exclusive_minimum=0
    )
    lora_modules: list[str] = option(  # noqa: RUF009 - option makes a field
        [], "names, or name suffixes, of the modules that get LoRA adapters; all linear layers if empty"
    )
    lora_merge: bool = option(
        False, "after each experience, merge the LoRA adapters into the weights and start new ones"
    )


@dataclass(frozen=True)
class Source:
    """Where an encoder comes from.

    Attributes:
        files: that decide its weights, those to be read first; empty for random ones.
        recipe: what else decides it, as JSON can hold it: of images `preprocessing`, see `Preprocess`, and what the
            part's `build` needs to make the network again without these files.
        weights: how many of the files hold weights; the others are code or settings.
    """

    files: tuple[Path, ...]
    recipe: Recipe = field(default_factory=dict)
    weights: int = 1


class Built(NamedTuple):
    """A network without its classifier, weights random.

    Attributes:
        network: maps preprocessed images to features, or a list of strings to features `[B, F]`.
        classifier: names of the modules that were left out.
    """

    network: nn.Module
    classifier: tuple[str, ...] = ()


# Finds where the weights of given options are; whether it may download them.
Find = Callable[[Any, bool], Source]


@dataclass(frozen=True, kw_only=True)
class Encoder(Part[Callable[[Any, Recipe], Built]]):
    """An encoder of the registry. `build` makes the network from options and recipe.

    Attributes:
        find: finds its weights; None for the part that is none.
        load: puts what was found into a network; None where the files are read as tensors by name.
        packages: whose versions a result tells.
        reads: what its samples are, `images` or `texts`.
    """

    find: Find | None = None
    load: Callable[[Built, Source], None] | None = None
    packages: tuple[str, ...] = ()
    reads: str = IMAGES


ENCODERS: Registry[Encoder] = Registry("encoder", Encoder)


def _nothing(options: Any, recipe: Recipe) -> Built:
    raise TypeError("there is no encoder to build")


ENCODERS.add("none", "no encoder: models read the samples of the stream", build=_nothing, options=NoOptions, reads="")


def encoder_of(section: Any) -> AnyEncoderOptions | None:
    """Return the section `encoder` of a configuration; None where it names no encoder."""
    return section if isinstance(section, AnyEncoderOptions) else None


def encoders_of(inputs: str) -> str:
    """Return the names of the encoders that read such inputs, or that there are none, to be told in a message."""
    known = ENCODERS.having(lambda part: part.reads == inputs)
    return f"known: {', '.join(known)}" if known else "use encoder.name=none"


def needed(package: str, extra: str, error: ImportError) -> UserError:
    """Return the mistake of a package that an encoder needs and that is not installed."""
    return UserError(f"encoder.name: needs the package {package}: pip install 'cl-ovq[{extra}]' ({error})")


def facts_of(options: AnyEncoderOptions) -> dict[str, Any]:
    """Return the options that decide what an encoder maps an image to."""
    return {key: value for key, value in vars(options).items() if key not in NOT_DECIDING}
