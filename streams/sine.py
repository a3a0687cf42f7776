"""Episodes of sine waves: each task has a frequency and two phases, and asks for a wave in the other phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.options import blur_option, count_option

if TYPE_CHECKING:
    import numpy as np

    from streams.counter_rng import Draws
    from streams.stream import Stream


@dataclass
class SineOptions:
    """An episode of sine waves."""

    tasks: int = count_option(20, "tasks per episode, one experience each", maximum=100_000)
    samples: int = count_option(5, "training samples per task")
    questions: int = count_option(5, "test samples per task")
    validation: int = count_option(5, "validation samples per task; 0: no validation stream", minimum=0)
    dimensions: int = count_option(50, "points per wave: the size of inputs and targets", maximum=65_536)
    noise: float = field(
        default=0.1,
        metadata={"help": "standard deviation of the input noise; targets are noise-free", "minimum": 0.0},
    )
    blur: float = blur_option()


def build_sine(options: SineOptions, *, seed: int) -> Stream:
    """Builds the stream of an episode, see `SineTasks`.

    A longer episode of one seed begins with the shorter one. Random numbers are the same on every machine; sines are
    computed in fp64 and stored in fp32, and may differ in the last bit where a machine's sine does.
    """
    import hashlib

    import numpy as np
    import torch

    from streams.benchmark import make_benchmark, split_digest
    from streams.counter_rng import Draws
    from streams.samples import VectorSamples
    from streams.sine_waves import SineTasks
    from streams.stream import Stream

    number, points = options.tasks, options.dimensions
    drawn = [uniform(Draws("sine", what, seed), 1, number) for what in ("frequency", "input phase", "target phase")]
    tasks = SineTasks.of(torch.from_numpy(np.stack(drawn)))
    sizes = {"train": options.samples, "validation": options.validation, "test": options.questions}
    inputs, targets, split, experiences, first = [], [], {}, [], 0
    for part, size in sizes.items():
        of_task = np.repeat(np.arange(number), size)
        amplitude = uniform(Draws("sine", part, "amplitude", seed), 1, number * size)
        x, y = tasks.waves(torch.from_numpy(of_task)[None], torch.from_numpy(amplitude), points)
        noise = normal(Draws("sine", part, "noise", seed), number * size, points)
        inputs.append(x[0] + options.noise * torch.from_numpy(noise))
        targets.append(y[0])
        experiences.append(of_task)
        if size:
            split[part] = np.arange(first, first + len(of_task), dtype=np.int64)
        first += len(of_task)
    samples = VectorSamples(torch.cat(inputs).float(), torch.cat(targets).float())
    experience = np.concatenate(experiences)
    labels = tuple((task,) for task in range(number))
    digest = hashlib.sha256(samples.inputs.numpy().tobytes() + samples.targets.numpy().tobytes())
    return Stream(
        name="sine",
        scenario="domain_incremental",
        benchmark=make_benchmark(samples, split, experience, experience, blur=options.blur, seed=seed),
        samples=samples,
        n_classes=points,
        classes_per_experience=labels,
        original_classes=labels,
        class_names=tuple(f"task {task + 1}" for task in range(number)),
        provenance={
            "dataset": "sine",
            "source": "generated",
            "files": {},
            "sizes": {part: len(split.get(part, ())) for part in sizes},
            "vector_shape": [points],
            "samples_sha256": digest.hexdigest(),
            "split_sha256": split_digest(split),
        },
        kind="vectors",
    )


def uniform(draws: Draws, *shape: int) -> np.ndarray:
    """Draws numbers from 0 to 1, without 1, fp64."""
    import numpy as np

    return (draws.bits(*shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(draws: Draws, *shape: int) -> np.ndarray:
    """Draws standard normal numbers, fp64 (Box and Muller 1958)."""
    import numpy as np

    length = np.sqrt(-2 * np.log(1 - uniform(draws, *shape)))
    return length * np.cos(2 * np.pi * uniform(draws, *shape))
