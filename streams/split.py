"""Cuts a labelled data set into experiences by class, and into train, validation and test.

Index work is numpy's: the arrays are small, and torch's threads cost more than they save, above all on a busy machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streams.benchmark import make_benchmark, shape_facts, split_digest
from streams.errors import StreamDataError
from streams.options import InstalledSplitOptions
from streams.samples import TensorSamples, samples_of
from streams.stream import Stream
from streams.text_samples import TextSamples

# Which samples are held out is part of the data, not of a run: the same test and validation samples for every seed,
# scenario and number of experiences, so that runs are compared on the same data.
HOLD_OUT_SEED = 2602

# Share of each class held out as the test set of a data set that has no official one.
TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class LabelledData:
    """A whole data set of images, vectors or texts, as its reader hands it over.

    Attributes:
        dataset: the data set's name.
        source: where it was found.
        files: checksums of what was read, by file.
        inputs: images `[n, C, H, W]` uint8, vectors `[n, F]` float16 or float32, or the bytes of all texts one after
            the other; in memory, or in a mapped file.
        targets: `[n]`, classes numbered from zero.
        divisor: the largest value that an image may hold; 1 for others.
        class_names: one per class.
        n_test: size of the official test set, which is the last `n_test` samples; 0 where there is none.
        test_fraction: share of each class that is held out as the test set where there is no official one.
        domains: `[n]`, domains numbered from zero; None where there are none.
        domain_names: one per domain.
        offsets: `[n + 1]`, where each text begins in `inputs`, and where the last one ends; None of images and vectors.
        contents: `[n]`, equal numbers where inputs are equal, so that no sample is both learned and asked for
            (`without_repeats`); None where a data set is taken as it is.
    """

    dataset: str
    source: str
    files: dict[str, dict[str, str]]
    inputs: np.ndarray
    targets: np.ndarray
    divisor: float
    class_names: tuple[str, ...]
    n_test: int = 0
    test_fraction: float = TEST_FRACTION
    domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()
    offsets: np.ndarray | None = None
    contents: np.ndarray | None = None

    def samples(self, labels: np.ndarray) -> TensorSamples | TextSamples:
        """Returns all samples with their labels `[n]`, as a model sees these."""
        targets = torch.from_numpy(labels)
        if self.offsets is not None:
            return TextSamples(self.inputs, self.offsets, targets)
        return samples_of(self.inputs, targets, divisor=self.divisor)


def build_split_stream(name: str, data: LabelledData, options: InstalledSplitOptions, *, seed: int) -> Stream:
    """Builds the stream of a data set split by class.

    Args:
        name: the stream's name.
        data: the data set.
        options: validated options.
        seed: decides the order of the classes, and nothing else.

    Raises:
        StreamDataError: more experiences than classes, a class order that is not a permutation, blurred boundaries with
            task labels, or a class without samples for one of the streams.
    """
    check_blur(options)
    check_labels(data)
    n_original = len(data.class_names)
    original_classes = split_classes(order_classes(n_original, options, seed=seed), options.experiences)
    restart = options.scenario == "domain_incremental"
    labels = tuple(tuple(range(len(c))) if restart else c for c in original_classes)

    # Everything about a sample follows from its class: by class, the label and the experience.
    label_of, experience_of = np.zeros((2, n_original), dtype=np.int64)
    for experience, (classes, class_labels) in enumerate(zip(original_classes, labels, strict=True)):
        label_of[list(classes)] = class_labels
        experience_of[list(classes)] = experience

    split = split_data(data, data.targets, options.validation_fraction)
    check_classes(data, split, experience_of)
    experiences = experience_of[data.targets]
    samples = data.samples(label_of[data.targets])
    return Stream(
        name=name,
        scenario=options.scenario,
        benchmark=make_benchmark(
            samples,
            split,
            experiences,
            samples.targets.numpy(),
            task_labels=experiences if options.scenario == "task_incremental" else None,
            blur=options.blur,
            seed=seed,
        ),
        samples=samples,
        n_classes=max(map(len, labels)) if restart else n_original,
        classes_per_experience=labels,
        original_classes=original_classes,
        class_names=data.class_names,
        provenance=data_provenance(data, split),
    )


def check_blur(options: Any) -> None:
    """Refuses task labels where boundaries are blurred.

    Raises:
        StreamDataError: both are asked for.
    """
    if options.blur and options.scenario == "task_incremental":
        raise StreamDataError("blur: task labels mark sharp boundaries: choose another scenario, or blur=0")


def check_labels(data: LabelledData) -> None:
    """Refuses labels that are not among the data set's classes.

    Raises:
        StreamDataError: naming the first one.
    """
    foreign = np.setdiff1d(data.targets, np.arange(len(data.class_names)))
    if len(foreign):
        raise StreamDataError(f"{data.dataset}: label {foreign[0]} is not one of its {len(data.class_names)} classes")


def check_classes(data: LabelledData, split: Mapping[str, np.ndarray], experience_of: np.ndarray | None) -> None:
    """Refuses a class that has no samples in one of the streams: it could not be learned, or not be judged.

    Args:
        data: the data set.
        split: rows of each stream, see `split_rows`.
        experience_of: `[classes]`, the experience of each class; None where every experience has all of them.

    Raises:
        StreamDataError: naming the class and its experience.
    """
    n_classes = len(data.class_names)
    counts = {name: np.bincount(data.targets[rows], minlength=n_classes) for name, rows in split.items()}
    whole = np.bincount(data.targets, minlength=n_classes)
    for label in range(n_classes) if experience_of is None else np.argsort(experience_of, kind="stable"):
        for name, found in counts.items():
            if not found[label]:
                where = "every experience" if experience_of is None else f"experience {experience_of[label] + 1}"
                raise StreamDataError(
                    f"{data.dataset}: class {label} ('{data.class_names[label]}') of {where} has no samples in the "
                    f"{name} stream, but {whole[label]} in the whole data set: every class needs at least one in "
                    f"each of {', '.join(split)}"
                )


def order_classes(n_classes: int, options: InstalledSplitOptions, *, seed: int) -> tuple[int, ...]:
    """Returns the order in which classes appear: as given, drawn from `seed` alone, or natural.

    Raises:
        StreamDataError: `options.class_order` is not a permutation of the classes.
    """
    if options.class_order is not None:
        if sorted(options.class_order) != list(range(n_classes)):
            raise StreamDataError(
                f"class_order={list(options.class_order)}: must list each class from 0 to {n_classes - 1} once"
            )
        return tuple(options.class_order)
    if not options.shuffle_classes:
        return tuple(range(n_classes))
    # Its own generator: Avalanche's generators reseed the global one, and with it the training.
    return tuple(torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed)).tolist())


def split_classes(order: Sequence[int], experiences: int) -> tuple[tuple[int, ...], ...]:
    """Cuts a class order into experiences as equal as can be, the larger ones first.

    Raises:
        StreamDataError: fewer classes than experiences.
    """
    if not 1 <= experiences <= len(order):
        raise StreamDataError(
            f"experiences={experiences}: must be from 1 to {len(order)}, because each experience needs its own class"
        )
    return tuple(tuple(int(c) for c in part) for part in np.array_split(np.asarray(order), experiences))


def split_data(data: LabelledData, groups: np.ndarray, validation_fraction: float) -> dict[str, np.ndarray]:
    """Splits the rows of a data set, see `split_rows` and `without_repeats`."""
    split = split_rows(
        groups, n_test=data.n_test, validation_fraction=validation_fraction, test_fraction=data.test_fraction
    )
    return split if data.contents is None else without_repeats(split, groups, data.contents)


def without_repeats(split: dict[str, np.ndarray], groups: np.ndarray, contents: np.ndarray) -> dict[str, np.ndarray]:
    """Leaves out held-out samples that have their like among those that are learned.

    A group of which nothing would be left to ask for keeps its first sample, and the likes of this one are not learned.

    Args:
        split: rows by split, as `split_rows` returns them.
        groups: `[n]`, the groups that were held out from alike.
        contents: `[n]`, equal numbers where samples are equal.

    Returns:
        Rows by split, ascending; no content is in two of them.
    """
    split = dict(split)
    for held_out, others in (("test", ("train", "validation")), ("validation", ("train",))):
        if held_out not in split:
            continue
        rows, learned = split[held_out], [name for name in others if name in split]
        new = ~np.isin(contents[rows], np.concatenate([contents[split[name]] for name in learned]))
        _, first = np.unique(groups[rows], return_index=True)
        new[first[~np.isin(groups[rows[first]], groups[rows[new]])]] = True
        split[held_out] = rows[new]
        for name in learned:
            split[name] = split[name][~np.isin(contents[split[name]], contents[rows[new]])]
    return split


def split_rows(
    targets: np.ndarray, *, n_test: int, validation_fraction: float, test_fraction: float = TEST_FRACTION
) -> dict[str, np.ndarray]:
    """Splits the rows of a data set into train, validation (where its fraction is not 0) and test, stratified by class.

    Args:
        targets: `[n]`, original classes, or other groups to be held out from alike.
        n_test: size of the official test set at the end of the data; 0 to hold out `test_fraction` of each class.
        validation_fraction: share of each class's remaining samples to hold out.
        test_fraction: share of each class to hold out where there is no official test set.

    Returns:
        Rows `[n_split]` int64 by split, ascending. Always the same rows for the same arguments; a smaller validation
        set is part of a larger one.
    """
    rows = np.arange(len(targets), dtype=np.int64)
    if n_test:
        train, test = rows[:-n_test], rows[-n_test:]
    else:
        train, test = _hold_out(rows, targets, test_fraction)
    if validation_fraction == 0:
        return {"train": train, "test": test}
    train, validation = _hold_out(train, targets, validation_fraction)
    return {"train": train, "validation": validation, "test": test}


def _hold_out(rows: np.ndarray, targets: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits `rows` into those kept and those held out: `fraction` of each class, at least one sample of each."""
    generator = torch.Generator().manual_seed(HOLD_OUT_SEED)
    held_out = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets[rows]):
        of_class = rows[targets[rows] == label]
        shuffled = of_class[torch.randperm(len(of_class), generator=generator).numpy()]
        held_out[shuffled[: max(1, round(fraction * len(of_class)))]] = True
    return rows[~held_out[rows]], rows[held_out[rows]]


def data_provenance(data: LabelledData, split: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns what a result must say of a data set and of how it was split."""
    return {
        "dataset": data.dataset,
        "source": data.source,
        "files": data.files,
        "sizes": {stream: len(split.get(stream, ())) for stream in ("train", "validation", "test")},
        **shape_facts(data.inputs.shape[1:]),
        "split_sha256": split_digest(split),
    }
