"""The options of a stream: plain dataclasses whose fields carry their own help, choices and range.

The metadata keys are `help`, `choices`, `minimum`, `exclusive_minimum` and `maximum`. Whoever reads a configuration can
validate and print it from them; `checked_options` does so for callers from Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from streams.errors import StreamDataError

SCENARIOS = ("class_incremental", "domain_incremental", "task_incremental")

DATA_DIR_HELP = "folder with the data set's files; missing files are downloaded into it, and no other folder is used"

OptionsT = TypeVar("OptionsT")


def count_option(default: int, help: str, *, minimum: int = 1, maximum: int = 100_000_000) -> Any:
    """Declares a whole number of at least one, of as many as fit into memory at all."""
    return field(default=default, metadata={"help": help, "minimum": minimum, "maximum": maximum})


def blur_option() -> Any:
    """Declares how far the boundaries between experiences are blurred."""
    return field(
        default=0.0,
        metadata={
            "help": "width of the blur at boundaries between experiences, in experiences, for task-free "
            "learning: training samples of both sides mix; 0: sharp",
            "minimum": 0.0,
            "maximum": 1.0,
        },
    )


def validation_option() -> Any:
    """Declares how much of the training data is held out for validation."""
    return field(
        default=0.1,
        metadata={
            "help": "fraction of each class's training samples held out as the validation stream; 0: no "
            "validation stream",
            "minimum": 0.0,
            "maximum": 0.9,
        },
    )


@dataclass
class DataDirOptions:
    """Where a data set that does not come installed is to be found."""

    data_dir: str | None = field(default=None, metadata={"help": DATA_DIR_HELP})


@dataclass
class InstalledSplitOptions:
    """A labelled data set that comes installed, cut into experiences by class."""

    scenario: str = field(
        default="class_incremental",
        metadata={
            "help": "class_incremental: original labels, no task label; domain_incremental: labels restart from zero "
            "in each experience, no task label; task_incremental: original labels, the task label is the experience",
            "choices": SCENARIOS,
        },
    )
    experiences: int = field(
        default=5,
        metadata={
            "help": "number of experiences, at most the number of classes; leftover classes go to the first ones",
            "minimum": 1,
            "maximum": 10_000,
        },
    )
    shuffle_classes: bool = field(
        default=True,
        metadata={"help": "shuffle the classes with the run's seed; false: natural order"},
    )
    class_order: list[int] | None = field(
        default=None,
        metadata={"help": "class order, each class exactly once; overrides shuffle_classes"},
    )
    validation_fraction: float = validation_option()
    blur: float = blur_option()


@dataclass
class SplitOptions(DataDirOptions, InstalledSplitOptions):
    """A labelled data set cut into experiences by class."""


@dataclass
class InstalledTransformOptions:
    """A labelled data set that comes installed, seen anew in each experience."""

    scenario: str = field(
        default="domain_incremental",
        metadata={
            "help": "domain_incremental: no task label; task_incremental: the task label is the experience",
            "choices": ("domain_incremental", "task_incremental"),
        },
    )
    experiences: int = field(
        default=5,
        metadata={
            "help": "number of experiences, each with all images; the first is unmodified",
            "minimum": 1,
            "maximum": 10_000,
        },
    )
    validation_fraction: float = validation_option()
    blur: float = blur_option()


@dataclass
class TransformOptions(DataDirOptions, InstalledTransformOptions):
    """A labelled data set seen anew in each experience: its pixels permuted, or its images rotated."""


@dataclass
class InstalledRotationOptions(InstalledTransformOptions):
    """A labelled data set that comes installed, whose images are rotated further in each experience."""

    degrees: float = field(
        default=180.0,
        metadata={
            "help": "angle of the last experience in degrees; the first is not rotated",
            "minimum": 0.0,
            "maximum": 360.0,
        },
    )


@dataclass
class RotationOptions(DataDirOptions, InstalledRotationOptions):
    """A labelled data set whose images are rotated further in each experience."""


def checked_options(options_type: type[OptionsT], options: Any) -> OptionsT:
    """Copies options into their plain dataclass and validates them from the fields' metadata.

    Args:
        options_type: the stream's options dataclass.
        options: an instance of it, anything with the same attributes (such as an OmegaConf node), or None for defaults.

    Raises:
        StreamDataError: a value is outside its field's choices or range, or one is given that the stream does not use.
    """
    if options is None:
        return options_type()
    entries = fields(options_type)  # type: ignore[arg-type]
    known = [entry.name for entry in entries]
    for name, value in _given(options).items():
        if name not in known and value is not None:
            raise StreamDataError(f"{name}={value!r}: this stream has no such option: known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for entry in entries:
        value = getattr(options, entry.name)
        if isinstance(value, Iterable) and not isinstance(value, str):
            value = list(value)
        _check_value(entry, value)
        values[entry.name] = value
    return options_type(**values)


def _given(options: Any) -> Mapping[str, Any]:
    """Returns the attributes of an options object by name; an OmegaConf node is a mapping."""
    return options if isinstance(options, Mapping) else vars(options)


def _check_value(entry: Field[Any], value: Any) -> None:
    limits = entry.metadata
    if value is None:
        return
    if "choices" in limits and value not in limits["choices"]:
        raise StreamDataError(f"{entry.name}={value!r}: choose one of {', '.join(map(str, limits['choices']))}")
    # Written so that a NaN fails too.
    if "minimum" in limits and not value >= limits["minimum"]:
        raise StreamDataError(f"{entry.name}={value!r}: must be at least {limits['minimum']}")
    if "exclusive_minimum" in limits and not value > limits["exclusive_minimum"]:
        raise StreamDataError(f"{entry.name}={value!r}: must be greater than {limits['exclusive_minimum']}")
    if "maximum" in limits and not value <= limits["maximum"]:
        raise StreamDataError(f"{entry.name}={value!r}: must be at most {limits['maximum']}")
