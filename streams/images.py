"""The streams of images: every data set split by class, with its pixels permuted, rotated, and in episodes.

Nothing slow is imported until a stream is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.digits import read_digits
from streams.episodes import EpisodeOptions, InstalledEpisodeOptions, build_episode
from streams.fashion_mnist import read_fashion_mnist
from streams.options import (
    InstalledRotationOptions,
    InstalledSplitOptions,
    InstalledTransformOptions,
    RotationOptions,
    SplitOptions,
    TransformOptions,
)
from streams.torchvision_images import read_torchvision

if TYPE_CHECKING:
    from streams.split import LabelledData
    from streams.stream import Stream


@dataclass(frozen=True)
class ImageDataset:
    """A data set of images.

    Attributes:
        read: finds, verifies and reads it; takes `stream.data_dir`, unless it comes installed.
        summary: what it is.
        installed: whether it comes installed, so that its streams have no `data_dir`.
    """

    read: Callable[..., LabelledData]
    summary: str
    installed: bool = False

    def load(self, options: Any) -> LabelledData:
        """Reads the data set that a stream's options ask for.

        Raises:
            StreamDataError: it is not found, or a file is not the known one.
        """
        return self.read() if self.installed else self.read(options.data_dir)


DATASETS = {
    "digits": ImageDataset(
        read_digits, "scikit-learn's digits (1797 images of 8 x 8, 10 classes; no download)", installed=True
    ),
    "fashion_mnist": ImageDataset(read_fashion_mnist, "Fashion-MNIST (70 000 images of 28 x 28, 10 classes)"),
    "mnist": ImageDataset(partial(read_torchvision, "MNIST"), "MNIST (70 000 images of 28 x 28, 10 classes)"),
    "cifar10": ImageDataset(
        partial(read_torchvision, "CIFAR10"), "CIFAR-10 (60 000 colour images of 32 x 32, 10 classes)"
    ),
    "cifar100": ImageDataset(
        partial(read_torchvision, "CIFAR100"), "CIFAR-100 (60 000 colour images of 32 x 32, 100 classes)"
    ),
}


def build_split(dataset: str, options: InstalledSplitOptions, *, seed: int) -> Stream:
    """Builds the stream of a data set split by class.

    Raises:
        StreamDataError: an option does not fit the data, the data is not found, or a file is not the known one.
    """
    from streams.split import build_split_stream  # imports torch, which listing the streams does without

    return build_split_stream(f"split_{dataset}", DATASETS[dataset].load(options), options, seed=seed)


def build_permuted(dataset: str, options: InstalledTransformOptions, *, seed: int) -> Stream:
    """Builds the stream of a data set whose pixels are permuted anew in each experience.

    Raises:
        StreamDataError: see `build_split`.
    """
    from streams.transformed import build_permuted_stream

    return build_permuted_stream(f"permuted_{dataset}", DATASETS[dataset].load(options), options, seed=seed)


def build_rotated(dataset: str, options: InstalledRotationOptions, *, seed: int) -> Stream:
    """Builds the stream of a data set whose images are turned further in each experience.

    Raises:
        StreamDataError: see `build_split`.
    """
    from streams.transformed import build_rotated_stream

    return build_rotated_stream(f"rotated_{dataset}", DATASETS[dataset].load(options), options, seed=seed)


def build_episodes(dataset: str, options: InstalledEpisodeOptions, *, seed: int) -> Stream:
    """Builds the stream of an episode: few samples of classes drawn from the seed.

    Raises:
        StreamDataError: see `build_split`.
    """
    return build_episode(f"episodes_{dataset}", DATASETS[dataset].load, options, seed=seed)


@dataclass(frozen=True)
class Variant:
    """A way to make a stream of a data set.

    Attributes:
        build: the builder, given the name of the data set.
        Options: its options.
        InstalledOptions: the same without `data_dir`, for a data set that comes installed.
        summary: what changes from one experience to the next.
    """

    build: Callable[..., Stream]
    Options: type[Any]
    InstalledOptions: type[Any]
    summary: str


VARIANTS = {
    "split": Variant(build_split, SplitOptions, InstalledSplitOptions, "split by class"),
    "permuted": Variant(
        build_permuted, TransformOptions, InstalledTransformOptions, "a new pixel permutation in each experience"
    ),
    "rotated": Variant(build_rotated, RotationOptions, InstalledRotationOptions, "rotated further in each experience"),
    "episodes": Variant(
        build_episodes, EpisodeOptions, InstalledEpisodeOptions, "few-shot episodes with random classes"
    ),
}
