"""What a stream is to those who train on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # At run time avalanche takes 7 to 11 s to import and torch 2 s, and listing the streams needs neither.
    from collections.abc import Callable, Sequence

    from avalanche.benchmarks import CLScenario

    from streams.samples import Samples
    from streams.sequences import SequenceSamples

# What a model's output and a sample's target are. `classes`: one class for a sample; `tokens`: a class at those tokens
# of a sequence that have a target; `bytes`: the next byte at every token; `values`: a number at those tokens;
# `vectors`: a vector for a sample.
KINDS = ("classes", "tokens", "bytes", "values", "vectors")


def classless(kind: str) -> str:
    """Returns what a stream of a kind other than `classes` has, for messages."""
    return "vectors without classes" if kind == "vectors" else "sequences"


@dataclass(frozen=True, eq=False)
class Stream:
    """A sequence of experiences, with all their samples.

    Attributes:
        name: the stream's name in the registry.
        scenario: `class_incremental`, `domain_incremental` or `task_incremental`.
        benchmark: Avalanche's view, with streams `train`, `validation` (absent without a validation fraction) and
            `test`. Each experience's dataset carries `targets`, `targets_task_labels` and `rows`, its samples' rows in
            `samples`, which `subset` and `concat` keep.
        samples: all samples of all three streams.
        n_classes: size of the model's output.
        classes_per_experience: labels of each experience, as the model sees them. Of sequences, whose targets are no
            classes of the sample, the number of the experience itself.
        original_classes: classes of each experience as the data set numbers them, in the same order; differs from
            `classes_per_experience` where labels restart in each experience (`domain_incremental`).
        class_names: name of each class, by the data set's numbers. Of sequences, the name of each experience.
        provenance: what a result must say of its data; plain values that JSON can hold. `domains` are the names of each
            experience's, where it is told by domains.
        kind: what the model's output and the targets are, one of `KINDS`.
        at_length: `(tokens, count, split)` to `test` or `validation` sequences of another length, where the stream has
            them; those of all experiences in equal parts.
    """

    name: str
    scenario: str
    benchmark: CLScenario
    samples: Samples
    n_classes: int
    classes_per_experience: tuple[tuple[int, ...], ...]
    original_classes: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    kind: str = "classes"
    at_length: Callable[[int, int, str], SequenceSamples] | None = None

    def experience_names(self) -> list[list[str]]:
        """Returns of each experience the names of its classes, or of its domains where it is told by these."""
        if "domains" in self.provenance:
            return [[str(name) for name in names] for names in self.provenance["domains"]]
        if self.kind == "classes":
            return [[str(self.class_names[label]) for label in labels] for labels in self.original_classes]
        return [[str(name)] for name in self.class_names]

    @classmethod
    def from_avalanche(
        cls, benchmark: CLScenario, *, name: str = "avalanche", class_names: Sequence[str] | None = None
    ) -> Stream:
        """Returns a stream of any classification benchmark of Avalanche's, whose samples are read when they are needed.

        Args:
            benchmark: with streams `train` and `test`, and perhaps `valid`, of as many experiences each. Samples are
                float tensors `[channels, height, width]` or `[features]`, after the benchmark's own transforms.
            name: of the stream, in results.
            class_names: one per class; their numbers if None.

        Raises:
            StreamDataError: a stream is missing or has another number of experiences, samples have no targets or are
                no such tensors, or test experiences have not the classes of their training experiences.
        """
        from streams.from_avalanche import from_avalanche  # takes seconds to import what it needs

        return from_avalanche(benchmark, name=name, class_names=class_names)
