"""The options that all streams of a user's own data have: where it lies, how it is cut, and where it is cached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streams.options import SCENARIOS, blur_option, validation_option

DEFAULT_EXPERIENCES = 5
# What the column of texts is called where its name is not given, the first that is there.
TEXTS = ("text", "texts", "sentence", "sentences", "content", "document", "review", "question", "utterance")


def test_option() -> Any:
    """Declares how much of the data is held out for the test."""
    return field(
        default=0.2,
        metadata={
            "help": "fraction of each class (in each domain) held out as the test stream if no test data is given",
            "minimum": 0.01,
            "maximum": 0.9,
        },
    )


@dataclass
class CutOptions:
    """How labelled samples, which may have domains, become experiences."""

    scenario: str = field(
        default="class_incremental",
        metadata={
            "help": "class_incremental: original labels, no task label; domain_incremental: one experience "
            "per domain, or, without domains, labels that restart from zero in each experience, no "
            "task label; task_incremental: original labels, the task label is the experience",
            "choices": SCENARIOS,
        },
    )
    experiences: int | None = field(
        default=None,
        metadata={
            "help": "number of experiences, at most the number of classes or domains; leftovers go to the first "
            f"ones; null: one per domain, or {DEFAULT_EXPERIENCES} (one per class if there are fewer classes)",
            "minimum": 1,
            "maximum": 100_000,
        },
    )
    shuffle_classes: bool = field(
        default=True,
        metadata={"help": "shuffle the classes with the run's seed; false: sorted by label"},
    )
    class_order: list[int] | None = field(
        default=None,
        metadata={
            "help": "class order, as indices into the sorted labels, each exactly once; overrides shuffle_classes"
        },
    )
    shuffle_domains: bool = field(
        default=False,
        metadata={"help": "shuffle the domains with the run's seed; false: sorted by name"},
    )
    domain_order: list[str] | None = field(
        default=None,
        metadata={"help": "domain names in stream order, each exactly once; overrides shuffle_domains"},
    )
    test_fraction: float = test_option()
    validation_fraction: float = validation_option()
    blur: float = blur_option()


@dataclass
class CacheOptions:
    """Whether samples are decoded once and kept in a file."""

    cache: bool = field(
        default=True,
        metadata={
            "help": "decode the samples once into a memory-mapped file, which may exceed memory; false: "
            "decode them into memory every time"
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "cache folder; null: cl-ovq/data in XDG_CACHE_HOME or ~/.cache"},
    )
