"""Streams in which every experience sees the same images in another way: pixels permuted, or images rotated."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from streams.benchmark import make_benchmark
from streams.counter_rng import Draws
from streams.options import InstalledRotationOptions, InstalledTransformOptions
from streams.samples import TensorSamples, tensor_of
from streams.split import LabelledData, check_blur, check_classes, check_labels, data_provenance, split_data
from streams.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Sequence


class RearrangedSamples(TensorSamples):
    """Images whose pixels are rearranged in a way of its own for each experience, when they are read.

    Row `e n + i` is image i as experience e sees it, of n images.

    Args:
        images: `[n, C, H, W]`, uint8 or float32.
        targets: `[n]`.
        maps: for each experience and pixel, the pixel whose value it takes, of the same channel; -1 for zero.
            `[E, H W]`.
        divisor: stored values are divided by it when read.
    """

    def __init__(self, images: torch.Tensor, targets: torch.Tensor, maps: torch.Tensor, *, divisor: float) -> None:
        super().__init__(images, targets, divisor=divisor)
        self.maps = maps
        self.targets = self.targets.repeat(len(maps))

    def __len__(self) -> int:
        return len(self.inputs) * len(self.maps)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.gather(torch.tensor([row]))[0], int(self.targets[row])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the images of `rows` `[b]` as float32 `[b, C, H, W]`."""
        images = self.inputs.index_select(0, rows % len(self.inputs)).flatten(2)
        maps = self.maps[rows // len(self.inputs)][:, None].expand_as(images)
        rearranged = images.gather(2, maps.clamp(min=0)).masked_fill(maps < 0, 0)
        return self._scaled(rearranged.unflatten(2, self.inputs.shape[2:]))

    def sha256(self) -> str:
        """Returns a checksum of the images and of how they are rearranged."""
        return hashlib.sha256(super().sha256().encode() + self.maps.numpy().tobytes()).hexdigest()


def build_permuted_stream(name: str, data: LabelledData, options: InstalledTransformOptions, *, seed: int) -> Stream:
    """Builds a stream whose experiences have a permutation of pixels each, the first none (Goodfellow et al. 2013).

    Args:
        name: the stream's name.
        data: the data set.
        options: validated options.
        seed: decides the permutations, and what crosses a blurred boundary.

    Raises:
        StreamDataError: blurred boundaries with task labels, or a class without samples for one of the streams.
    """
    pixels = data.inputs.shape[2] * data.inputs.shape[3]
    drawn = Draws("permuted", seed).orders(options.experiences - 1, pixels)
    return _build(name, data, np.concatenate([np.arange(pixels)[None], drawn]), options, seed)


def build_rotated_stream(name: str, data: LabelledData, options: InstalledRotationOptions, *, seed: int) -> Stream:
    """Builds a stream whose images are turned further in each experience (Lopez-Paz and Ranzato 2017).

    Pixels take the nearest value; corners that come from outside the image are zero.

    Args:
        name: the stream's name.
        data: the data set.
        options: validated options.
        seed: decides what crosses a blurred boundary, and nothing else.

    Raises:
        StreamDataError: blurred boundaries with task labels, or a class without samples for one of the streams.
    """
    last = max(1, options.experiences - 1)
    angles = [options.degrees * experience / last for experience in range(options.experiences)]
    stream = _build(name, data, rotations(data.inputs.shape[2], data.inputs.shape[3], angles), options, seed)
    stream.provenance["domains"] = [[f"{angle:.4g} degrees"] for angle in angles]
    return stream


def rotations(height: int, width: int, degrees: Sequence[float]) -> np.ndarray:
    """Returns for each angle, counter-clockwise, where each pixel comes from, `[E, H W]`; -1 for outside."""
    y, x = np.mgrid[:height, :width].reshape(2, -1) - np.array([[(height - 1) / 2], [(width - 1) / 2]])
    maps = []
    for angle in degrees:
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        # A hair off, so that a half is rounded alike whatever the last bit of a cosine.
        from_x = np.rint(x * cos - y * sin + (width - 1) / 2 + 1e-9).astype(np.int64)
        from_y = np.rint(x * sin + y * cos + (height - 1) / 2 + 1e-9).astype(np.int64)
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        maps.append(np.where(inside, from_y * width + from_x, -1))
    return np.stack(maps)


def _build(name: str, data: LabelledData, maps: np.ndarray, options: InstalledTransformOptions, seed: int) -> Stream:
    check_blur(options)
    check_labels(data)
    count, n_classes, size = options.experiences, len(data.class_names), len(data.inputs)
    samples = RearrangedSamples(
        tensor_of(data.inputs), torch.from_numpy(data.targets), torch.from_numpy(maps), divisor=data.divisor
    )
    base = split_data(data, data.targets, options.validation_fraction)
    check_classes(data, base, None)
    starts = np.arange(count)[:, None] * size
    split = {stream: (starts + rows).ravel() for stream, rows in base.items()}
    experiences = np.repeat(np.arange(count), size)
    classes = tuple(tuple(range(n_classes)) for _ in range(count))
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
        n_classes=n_classes,
        classes_per_experience=classes,
        original_classes=classes,
        class_names=data.class_names,
        provenance=data_provenance(data, split),
    )
