"""All sequences of a stream, held in memory, and the stream made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from streams.benchmark import make_benchmark, split_digest
from streams.errors import StreamDataError
from streams.samples import Samples
from streams.stream import Stream

PADDING = -1  # a token that is none: what is behind the end of a short sequence
IGNORED = -100  # the target of a token that has none, as PyTorch's cross-entropy takes it; NaN among real numbers
LENGTH_DRAWS = {"test": "length", "validation": "validation length"}  # purposes of draws for other lengths

Item = tuple[torch.Tensor, torch.Tensor]


class SequenceSamples(Samples):
    """Sequences with a target per token; the row of a sequence is its index here.

    Args:
        inputs: tokens `[n, T]`, whole numbers, `PADDING` behind the end; or features `[n, T, F]` float32.
        targets: `[n, T]`: whole numbers, `IGNORED` where there is none; or float32, NaN where there is none.
        names: what a token is called, to show it; None for features.
        distances: `[n, T]`, tokens back to what decides a target; 0 where there is none. None if not known.

    Raises:
        ValueError: shapes do not fit.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        *,
        names: Callable[[int], str] | None = None,
        distances: np.ndarray | None = None,
    ) -> None:
        if inputs.ndim not in (2, 3) or targets.shape != inputs.shape[:2]:
            raise ValueError(
                f"inputs must be [n, T] or [n, T, F] and targets [n, T], got {inputs.shape} and {targets.shape}"
            )
        self.inputs = torch.from_numpy(inputs)
        self.targets = torch.from_numpy(targets)
        self.names = names
        self.distances = None if distances is None else torch.from_numpy(distances)

    @property
    def sample_bytes(self) -> int:
        """Bytes that one sequence takes as it is stored."""
        return self.inputs[0].nbytes + self.targets[0].nbytes

    @property
    def features(self) -> int | None:
        """Features of a token (F); None where tokens are whole numbers."""
        return self.inputs.shape[2] if self.inputs.ndim == 3 else None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> Item:
        return self.gather(torch.tensor([row]))[0], self.targets[row]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the inputs of `rows` `[b]`: int64 `[b, T]`, or float32 `[b, T, F]`."""
        inputs = self.inputs.index_select(0, rows)
        return inputs.long() if self.features is None else inputs

    def decode(self, row: int) -> str:
        """Returns a sequence as text: tokens by name, and each target behind an arrow; vectors as numbers."""
        if self.features is not None:
            lines = (" ".join(f"{x:6.2f}" for x in token) for token in self.inputs[row].tolist())
            targets = ("" if y != y else f" -> {y:.2f}" for y in self.targets[row].tolist())
            return "\n".join(map("".join, zip(lines, targets, strict=True)))
        name = self.names or str
        if torch.equal(self.targets[row, :-1], self.inputs[row, 1:].long()):  # a text
            return "".join(map(name, [*self.inputs[row].tolist(), int(self.targets[row, -1])]))
        parts = []
        for token, target in zip(self.inputs[row].tolist(), self.targets[row].tolist(), strict=True):
            if token != PADDING:
                parts.append(name(token) if target == IGNORED else f"{name(token)}->{name(target)}")
        return " ".join(parts)


def concatenate(parts: Sequence[SequenceSamples]) -> SequenceSamples:
    """Joins samples of the same kind end to end, padding the shorter ones."""
    longest = max(part.inputs.shape[1] for part in parts)

    def join(name: str, fill: float) -> np.ndarray:
        arrays = [getattr(part, name).numpy() for part in parts]
        widths = [[(0, 0), (0, longest - array.shape[1])] + [(0, 0)] * (array.ndim - 2) for array in arrays]
        padded = [np.pad(a, width, constant_values=fill) for a, width in zip(arrays, widths, strict=True)]
        return np.concatenate(padded)

    return SequenceSamples(
        join("inputs", PADDING if parts[0].features is None else 0.0),
        join("targets", np.nan if parts[0].targets.is_floating_point() else IGNORED),
        names=parts[0].names,
        distances=None if parts[0].distances is None else join("distances", 0),
    )


def sequence_stream(
    name: str,
    parts: Mapping[str, Sequence[SequenceSamples]],
    *,
    kind: str,
    outputs: int,
    experience_names: Sequence[str],
    provenance: Mapping[str, Any],
    blur: float,
    seed: int,
    at_length: Callable[[int, int, str], SequenceSamples] | None = None,
) -> Stream:
    """Makes the stream of sequences that lie in memory.

    Args:
        name: the stream's name.
        parts: samples of each experience, for `train`, `validation` and `test`.
        kind: see `streams.stream.KINDS`.
        outputs: size of the model's output.
        experience_names: what each experience is called.
        provenance: what a result must say beside sizes and checksums: `dataset`, `source`, `files`.
        blur: how far boundaries are blurred.
        seed: decides what crosses a blurred boundary.
        at_length: see `Stream`.

    Raises:
        StreamDataError: an experience has no sequences in a stream that others have some in, or there are none to train
            or test on at all.
    """
    count = len(experience_names)
    for stream, found in parts.items():
        if stream == "validation" and not any(map(len, found)):
            continue  # no validation stream was asked for
        for number, part in enumerate(found, start=1):
            if not len(part):
                raise StreamDataError(
                    f"{name}: experience {number} ('{experience_names[number - 1]}') has no sequences in the {stream} "
                    "stream"
                )
    samples = concatenate([part for stream in parts.values() for part in stream])
    split, experiences, first = {}, [], 0
    for stream, found in parts.items():
        sizes = [len(part) for part in found]
        if sum(sizes):
            split[stream] = np.arange(first, first + sum(sizes), dtype=np.int64)
        experiences.append(np.repeat(np.arange(count), sizes))
        first += sum(sizes)
    experience = np.concatenate(experiences)
    labels = tuple((number,) for number in range(count))
    digest = hashlib.sha256(samples.inputs.numpy().tobytes() + samples.targets.numpy().tobytes())
    return Stream(
        name=name,
        scenario="domain_incremental",
        benchmark=make_benchmark(samples, split, experience, experience, blur=blur, seed=seed),
        samples=samples,
        n_classes=outputs,
        classes_per_experience=labels,
        original_classes=labels,
        class_names=tuple(experience_names),
        provenance=dict(provenance)
        | {
            "sizes": {stream: len(split.get(stream, ())) for stream in ("train", "validation", "test")},
            "sequence_shape": list(samples.inputs.shape[1:]),
            "sequences_sha256": digest.hexdigest(),
            "split_sha256": split_digest(split),
        },
        kind=kind,
        at_length=at_length,
    )
