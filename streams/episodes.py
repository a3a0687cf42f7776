"""`episodes_DATA`: a few samples of classes that are drawn anew for every seed, task after task.

The protocol of Lee, Son and Kim 2023 (arXiv 2310.11952): an episode is a stream of its own, of T tasks with C classes
each and K training samples of a class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.errors import StreamDataError
from streams.features import FeatureFileOptions
from streams.glyphs import GlyphForm
from streams.hf_dataset import HubPlaces
from streams.image_folder import ImageForm, ImagePlaces
from streams.options import DataDirOptions, validation_option
from streams.own_options import CacheOptions, test_option

if TYPE_CHECKING:
    import numpy as np

    from streams.counter_rng import Draws
    from streams.split import LabelledData
    from streams.stream import Stream


@dataclass
class InstalledEpisodeOptions:
    """An episode of a data set that comes installed."""

    scenario: str = field(
        default="class_incremental",
        metadata={
            "help": "class_incremental: no task label; task_incremental: the task label is the experience",
            "choices": ("class_incremental", "task_incremental"),
        },
    )
    tasks: int = field(
        default=5, metadata={"help": "tasks per episode, one experience each", "minimum": 1, "maximum": 100_000}
    )
    classes_per_task: int = field(
        default=2,
        metadata={"help": "classes per task, disjoint between tasks", "minimum": 1, "maximum": 100_000},
    )
    samples: int = field(
        default=5,
        metadata={"help": "training samples per class, drawn with the run's seed", "minimum": 1, "maximum": 10**8},
    )
    questions: int | None = field(
        default=None,
        metadata={
            "help": "test samples per class, drawn with the run's seed, and maximum of validation samples "
            "per class; all held-out samples if null",
            "minimum": 1,
            "maximum": 10**8,
        },
    )
    validation_fraction: float = validation_option()


@dataclass
class EpisodeOptions(DataDirOptions, InstalledEpisodeOptions):
    """An episode of a data set of images."""


@dataclass
class OwnEpisodeOptions(InstalledEpisodeOptions):
    """An episode of data that may have no official test set."""

    test_fraction: float = test_option()


@dataclass
class GlyphEpisodeOptions(CacheOptions, OwnEpisodeOptions, GlyphForm):
    """An episode of characters in typefaces."""


@dataclass
class FeatureEpisodeOptions(CacheOptions, OwnEpisodeOptions, FeatureFileOptions):
    """An episode of feature vectors of the user's own."""


@dataclass
class ImageFolderEpisodeOptions(CacheOptions, OwnEpisodeOptions, ImageForm, ImagePlaces):
    """An episode of images of the user's own."""


@dataclass
class HubEpisodeOptions(CacheOptions, OwnEpisodeOptions, ImageForm, HubPlaces):
    """An episode of a data set of the `datasets` library."""


def build_episode(
    name: str, load: Callable[[Any], LabelledData], options: InstalledEpisodeOptions, *, seed: int
) -> Stream:
    """Builds the stream of an episode.

    Which samples are held out for validation and test is the same for every seed; classes, and those of their samples
    that are used, are drawn from it. The first tasks of a longer episode are a shorter one, and the samples of a
    smaller draw are part of a larger one. Labels number the classes in the order in which they come.

    Args:
        name: the stream's name.
        load: reads the data set that the options ask for.
        options: validated options.
        seed: decides classes and samples.

    Raises:
        StreamDataError: the data is not found or damaged, or there are too few classes with so many samples.
    """
    import numpy as np
    import torch

    from streams.benchmark import make_benchmark
    from streams.counter_rng import Draws
    from streams.samples import samples_of
    from streams.split import check_labels, data_provenance, split_data
    from streams.stream import Stream

    data = load(options)
    check_labels(data)
    held_out = split_data(data, data.targets, options.validation_fraction)
    most = {"train": options.samples, "validation": options.questions, "test": options.questions}
    enough = _classes_with_enough(data, held_out, options)
    order = Draws("episode", "classes", seed).orders(1, len(data.class_names))[0]
    # Of all classes, so that a class keeps its place in the draw where others have too few samples.
    drawn = order[enough[order]][: options.tasks * options.classes_per_task]

    label_of = np.full(len(data.class_names), -1)
    label_of[drawn] = np.arange(len(drawn))
    rows = {
        part: _drawn(
            of_part[label_of[data.targets[of_part]] >= 0], data.targets, most[part], Draws("episode", part, seed)
        )
        for part, of_part in held_out.items()
    }
    kept = np.concatenate(list(rows.values()))
    labels = label_of[data.targets[kept]]
    ends = np.cumsum([len(found) for found in rows.values()])
    split = dict(zip(rows, np.split(np.arange(len(kept)), ends[:-1]), strict=True))
    samples = samples_of(np.ascontiguousarray(data.inputs[kept]), torch.from_numpy(labels), divisor=data.divisor)
    classes = tuple(
        tuple(range(first, first + options.classes_per_task))
        for first in range(0, len(drawn), options.classes_per_task)
    )
    experiences = labels // options.classes_per_task
    return Stream(
        name=name,
        scenario=options.scenario,
        benchmark=make_benchmark(
            samples,
            split,
            experiences,
            labels,
            task_labels=experiences if options.scenario == "task_incremental" else None,
        ),
        samples=samples,
        n_classes=len(drawn),
        classes_per_experience=classes,
        original_classes=classes,
        class_names=tuple(data.class_names[number] for number in drawn),
        provenance=data_provenance(data, rows),
    )


def _classes_with_enough(
    data: LabelledData, held_out: dict[str, np.ndarray], options: InstalledEpisodeOptions
) -> np.ndarray:
    """Returns `[classes]`: whether an episode can have a class.

    Raises:
        StreamDataError: fewer of them can be had than are asked for.
    """
    import numpy as np

    least = {"train": options.samples, "validation": 1, "test": options.questions or 1}
    counts = {part: np.bincount(data.targets[rows], minlength=len(data.class_names)) for part, rows in held_out.items()}
    enough = np.all([found >= least[part] for part, found in counts.items()], axis=0)
    wanted = options.tasks * options.classes_per_task
    if enough.sum() < wanted:
        needed = ", ".join(f"{least[part]} in {part} (at most {found.max()})" for part, found in counts.items())
        raise StreamDataError(
            f"tasks={options.tasks}: with {options.classes_per_task} classes each, they need {wanted}, but "
            f"in {data.dataset} only {enough.sum()} of the {len(enough)} classes have enough samples: {needed}"
        )
    return enough


def _drawn(rows: np.ndarray, targets: np.ndarray, most: int | None, draws: Draws) -> np.ndarray:
    """Returns rows of which a class keeps so many at most, ascending; all if None.

    Args:
        rows: ascending.
        targets: of all rows.
        most: of a class.
        draws: the source of chance.
    """
    import numpy as np

    if most is None:
        return rows
    by_class = np.lexsort((draws.bits(len(targets))[rows], targets[rows]))
    counts = np.bincount(targets[rows])
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(rows)) - starts[targets[rows][by_class]]
    return np.sort(rows[by_class[rank < most]])
