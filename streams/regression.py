"""In-context regression: examples of unknown functions, interleaved, then questions (Garg et al. 2022).

A token is an example `x, y` of one of a sequence's functions, which a mark tells; a question has the y left out, which
is the target. Everything is computed in whole numbers and divided by powers of two, so that it is exact everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.options import blur_option, count_option

if TYPE_CHECKING:
    import numpy as np

    from streams.counter_rng import Draws
    from streams.sequences import SequenceSamples
    from streams.stream import Stream

FAMILIES = ("linear", "sparse", "quadratic", "sign")
SHIFTS = ("none", "family", "functions", "examples")
UNIT = 32  # inputs and weights are whole multiples of 1 / UNIT in -1 .. 1


@dataclass
class RegressionOptions:
    """In-context regression of several functions at once."""

    experiences: int = count_option(3, "number of experiences")
    shift: str = field(
        default="family",
        metadata={
            "help": "what changes between experiences: nothing; the function family, in turn; or the number "
            "of functions or examples, doubled each time",
            "choices": SHIFTS,
        },
    )
    family: str = field(
        default="linear",
        metadata={
            "help": "function family (of the first experience, if families shift): linear; sparse: only "
            "every other input; quadratic: of the squared inputs; sign: of the inputs' signs",
            "choices": FAMILIES,
        },
    )
    functions: int = count_option(2, "interleaved functions per sequence")
    dimensions: int = count_option(4, "inputs per function")
    examples: int = count_option(24, "examples per function and sequence")
    questions: int = count_option(8, "queries at the end of a sequence")
    train: int = count_option(2000, "training sequences per experience")
    validation: int = count_option(200, "validation sequences per experience; 0: no validation stream", minimum=0)
    test: int = count_option(200, "test sequences per experience")
    blur: float = blur_option()


def build_regression(options: RegressionOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: the options do not fit each other.
    """
    from streams.sequences import LENGTH_DRAWS, concatenate, sequence_stream

    if options.dimensions > 64:
        raise StreamDataError(f"dimensions={options.dimensions}: must be at most 64, to keep sums exact")
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    settings = [experience_options(options, experience) for experience in range(options.experiences)]
    marks = max(setting.functions for setting in settings)
    parts: dict[str, list[SequenceSamples]] = {name: [] for name in sizes}
    from streams.counter_rng import Draws

    for experience, setting in enumerate(settings):
        draws = Draws("regression", seed, experience)
        for name, size in sizes.items():
            parts[name].append(generate(setting, size, marks, draws))

    def at_length(tokens: int, count: int, split: str) -> SequenceSamples:
        size = (count + len(settings) - 1) // len(settings)
        found = []
        for experience, setting in enumerate(settings):
            examples = (tokens - setting.questions) // setting.functions
            if examples < 1:
                raise StreamDataError(
                    f"{tokens} tokens are too few for {setting.questions} queries and at least one example"
                )
            draws = Draws("regression", seed, experience, LENGTH_DRAWS[split], tokens)
            found.append(generate(replace(setting, examples=examples), size, marks, draws))
        return concatenate(found)

    names = {
        "none": [f"part {number + 1}" for number in range(options.experiences)],
        "family": [f"{setting.family}" for setting in settings],
        "functions": [f"{setting.functions} functions" for setting in settings],
        "examples": [f"{setting.examples} examples" for setting in settings],
    }
    return sequence_stream(
        "regression",
        parts,
        kind="values",
        outputs=1,
        experience_names=names[options.shift],
        provenance={"dataset": "regression", "source": "generated", "files": {}},
        blur=options.blur,
        seed=seed,
        at_length=at_length,
    )


def experience_options(options: RegressionOptions, experience: int) -> RegressionOptions:
    """Returns what an experience is like under the options' shift."""
    if options.shift == "family":
        return replace(options, family=FAMILIES[(FAMILIES.index(options.family) + experience) % len(FAMILIES)])
    if options.shift in ("functions", "examples"):
        return replace(options, **{options.shift: getattr(options, options.shift) * 2**experience})
    return options


def generate(options: RegressionOptions, count: int, marks: int, draws: Draws) -> SequenceSamples:
    """Generates sequences: features are the inputs, y, whether y is asked for, and the mark of the function.

    Args:
        options: of one experience.
        count: sequences.
        marks: size of a mark, at least the number of functions.
        draws: the source of chance.
    """
    import numpy as np

    from streams.sequences import SequenceSamples

    size, functions = options.dimensions, options.functions
    shown = options.examples * functions
    tokens = shown + options.questions
    weights = draws.below(2 * UNIT + 1, count, functions, size) - UNIT
    x = draws.below(2 * UNIT + 1, count, tokens, size) - UNIT
    which = np.concatenate(
        (draws.orders(count, shown) % functions, draws.below(functions, count, options.questions)), axis=1
    )
    chosen = np.take_along_axis(weights, which[..., None], axis=1)  # [n, T, D]
    y, scale = evaluate(options.family, x, chosen)

    asked = np.arange(tokens) >= shown
    mark = (which[..., None] == np.arange(marks)).astype(np.float32)
    value = (y.astype(np.float64) / scale).astype(np.float32)
    known = np.where(asked, np.float32(0), value)
    flags = np.broadcast_to(asked.astype(np.float32), value.shape)
    inputs = np.concatenate(
        ((x / UNIT).astype(np.float32), known[..., None], flags[..., None], mark), axis=2, dtype=np.float32
    )
    return SequenceSamples(inputs, np.where(asked, value, np.float32(np.nan)))


def evaluate(family: str, x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the functions' values in whole numbers, and the power of two that they are to be divided by.

    Args:
        family: one of `FAMILIES`.
        x: inputs `[n, T, D]`, multiples of `1 / UNIT`.
        weights: `[n, T, D]`, likewise.
    """
    import numpy as np

    features, unit = {
        "linear": (x, UNIT),
        "sparse": (x * (np.arange(x.shape[-1]) % 2 == 0), UNIT),
        "quadratic": (2 * x * x - UNIT * UNIT, UNIT * UNIT),
        "sign": (np.sign(x), 1),
    }[family]
    root = 1 << ((x.shape[-1].bit_length() - 1) // 2)  # about the root of D: values of the size of one
    return (weights * features).sum(-1), unit * UNIT * root
