"""Makes a stream of any labelled data, with or without domains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from streams.benchmark import by_experience, make_benchmark
from streams.errors import StreamDataError
from streams.options import InstalledSplitOptions
from streams.own_options import DEFAULT_EXPERIENCES, CutOptions
from streams.split import (
    LabelledData,
    build_split_stream,
    check_blur,
    check_classes,
    check_labels,
    data_provenance,
    split_data,
)
from streams.stream import Stream

# Of a class in a domain, the fewest samples from which training, validation and test can each get one.
FEWEST = 3


def build_own_stream(name: str, data: LabelledData, options: CutOptions, *, seed: int) -> Stream:
    """Builds the stream of a user's data: by domain where it has domains and is domain-incremental, else by class.

    Args:
        name: the stream's name.
        data: the data set.
        options: validated options.
        seed: decides the order of classes or domains and what crosses a blurred boundary, and nothing else.

    Raises:
        StreamDataError: options that do not fit the data, or a class or experience without samples for one of the
            streams.
    """
    if data.domains is not None and options.scenario == "domain_incremental":
        if options.class_order is not None:
            raise StreamDataError("class_order: not used if experiences are domains: use domain_order")
        return _build_domain_stream(name, data, options, seed=seed)
    if options.domain_order is not None:
        reason = "the data has no domains" if data.domains is None else f"scenario={options.scenario} does not use them"
        raise StreamDataError(f"domain_order: {reason}")
    by_class = InstalledSplitOptions(
        scenario=options.scenario,
        experiences=options.experiences or min(DEFAULT_EXPERIENCES, len(data.class_names)),
        shuffle_classes=options.shuffle_classes,
        class_order=options.class_order,
        validation_fraction=options.validation_fraction,
        blur=options.blur,
    )
    return build_split_stream(name, data, by_class, seed=seed)


def _build_domain_stream(name: str, data: LabelledData, options: CutOptions, *, seed: int) -> Stream:
    """Builds a stream whose experiences are domains, or several each, with the original labels in all of them."""
    check_blur(options)
    check_labels(data)
    assert data.domains is not None
    order = order_domains(data.domain_names, options, seed=seed)
    count = options.experiences or len(order)
    if count > len(order):
        raise StreamDataError(
            f"experiences={count}: must be from 1 to {len(order)}, because each experience needs its own domain"
        )
    parts = np.array_split(np.asarray(order), count)
    experience_of = np.zeros(len(order), dtype=np.int64)
    for experience, domains in enumerate(parts):
        experience_of[domains] = experience
    experiences = experience_of[data.domains]
    split = split_data(data, groups_of(data.targets, data.domains), options.validation_fraction)
    check_classes(data, split, None)
    _check_experiences(data, split, experiences, parts)
    samples = data.samples(data.targets)
    classes = tuple(
        tuple(np.unique(data.targets[rows]).tolist()) for rows in by_experience(split["train"], experiences)
    )
    names = [[data.domain_names[domain] for domain in domains] for domains in parts]
    return Stream(
        name=name,
        scenario=options.scenario,
        benchmark=make_benchmark(samples, split, experiences, samples.targets.numpy(), blur=options.blur, seed=seed),
        samples=samples,
        n_classes=len(data.class_names),
        classes_per_experience=classes,
        original_classes=classes,
        class_names=data.class_names,
        provenance={**data_provenance(data, split), "domains": names},
    )


def order_domains(names: Sequence[str], options: CutOptions, *, seed: int) -> list[int]:
    """Returns the order in which domains appear: as given, drawn from `seed` alone, or by name.

    Raises:
        StreamDataError: `options.domain_order` does not name each domain once.
    """
    if options.domain_order is not None:
        if sorted(options.domain_order) != sorted(names):
            raise StreamDataError(
                f"domain_order: must list each of these domains once: {', '.join(names)}; "
                f"given: {', '.join(options.domain_order)}"
            )
        return [names.index(name) for name in options.domain_order]
    if options.shuffle_domains:
        return torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return list(range(len(names)))


def groups_of(targets: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """Returns the group `[n]` of each sample, from each of which a share is held out: its class in its domain.

    The samples of a class in domains that have fewer than `FEWEST` of it are one group together, so that a rare class
    is not lost from training.
    """
    pairs = domains.astype(np.int64) * (int(targets.max()) + 1) + targets
    _, pair, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    return np.where(counts[pair] < FEWEST, targets, pairs + int(targets.max()) + 1)


def _check_experiences(
    data: LabelledData, split: dict[str, np.ndarray], experiences: np.ndarray, parts: Sequence[np.ndarray]
) -> None:
    """Refuses an experience that has no samples in one of the streams."""
    for stream, rows in split.items():
        found = np.bincount(experiences[rows], minlength=len(parts))
        for number in np.flatnonzero(found == 0)[:1]:
            names = "', '".join(data.domain_names[domain] for domain in parts[number])
            raise StreamDataError(
                f"{data.dataset}: experience {number + 1} (domain '{names}') has no samples in the {stream} stream"
            )
