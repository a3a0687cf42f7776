"""Needles in a haystack of synthetic text, after RULER (Hsieh et al. 2024, arXiv 2404.06654).

    single              w w w [needle k3 4 1 7] w w w w ? k3 4 1 7          one needle; its key is asked for at the end
    multi_key           w [needle k3 4 1 7] w [needle k9 0 2 2] w ? k9 0 2 2   several, one of which is asked for
    variable_tracking   w [let k3 4 1 7] w [let k5 = k3] w ? k5 4 1 7       names handed on; the last is asked for

The digits of the answer are the targets. RULER asks for the names that have a value; here the value of a name is asked
for, so that all tasks are answered alike. Its texts are essays; ours are drawn from a Markov chain of words, the same
for all seeds: each word has a few that may follow it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.options import blur_option, count_option

if TYPE_CHECKING:
    import numpy as np

    from streams.counter_rng import Draws
    from streams.generated import Generated
    from streams.sequences import SequenceSamples
    from streams.stream import Stream

TASKS = ("single", "multi_key", "variable_tracking")
DIGITS = 10
MARKS = ("needle", "let", "=", "?")
FOLLOWERS = 8  # words that may come after a word


@dataclass
class NeedleOptions:
    """Needles in a haystack of text."""

    task_types: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": f"tasks, one experience each: {', '.join(TASKS)}"}
    )
    length: int = count_option(256, "tokens per sequence", minimum=16)
    needles: int = count_option(4, "needles in multi_key", minimum=2, maximum=10_000)
    hops: int = count_option(2, "assignments to another name in variable_tracking", maximum=1000)
    digits: int = count_option(3, "digits per value", maximum=100)
    keys: int = count_option(64, "number of possible keys", minimum=2)
    words: int = count_option(128, "number of possible words", minimum=FOLLOWERS)
    train: int = count_option(4000, "training sequences per task")
    validation: int = count_option(200, "validation sequences per task; 0: no validation stream", minimum=0)
    test: int = count_option(200, "test sequences per task")
    blur: float = blur_option()


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Which tokens are what: digits, then marks, keys and words.

    Attributes:
        keys: that there are.
        words: that there are.
    """

    keys: int
    words: int

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.first_word + self.words

    @property
    def first_key(self) -> int:
        """The first token that is a key."""
        return DIGITS + len(MARKS)

    @property
    def first_word(self) -> int:
        """The first token that is a word."""
        return self.first_key + self.keys

    def mark(self, name: str) -> int:
        """Returns the token of a mark."""
        return DIGITS + MARKS.index(name)

    def name(self, token: int) -> str:
        """Returns what a token is called."""
        if token < DIGITS:
            return str(token)
        if token < self.first_key:
            return MARKS[token - DIGITS]
        return f"k{token - self.first_key}" if token < self.first_word else f"w{token - self.first_word}"


def build_needle(options: NeedleOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: an unknown task, or sequences that are too short for what they must hold.
    """
    from streams.generated import distinct
    from streams.sequences import LENGTH_DRAWS, concatenate, sequence_stream

    for task in options.task_types:
        if task not in TASKS:
            raise StreamDataError(f"task_types: unknown task '{task}': known: {', '.join(TASKS)}")
    if not options.task_types:
        raise StreamDataError(f"task_types: choose at least one of {', '.join(TASKS)}")
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}

    def generated(task: str, count: int, length: int, *purpose: str | int) -> Generated:
        hint = f"{length} tokens of {task}: ask for fewer, or for more keys, words or digits"
        return distinct(partial(generate, task, options, length), count, hint, "needle", task, *purpose)

    parts: dict[str, list[SequenceSamples]] = {name: [] for name in sizes}
    for number, task in enumerate(options.task_types):
        whole = generated(task, sum(sizes.values()), options.length, seed, number)
        for name, found in whole.parts(sizes).items():
            parts[name].append(found)

    def at_length(tokens: int, count: int, split: str) -> SequenceSamples:
        each = -(-count // len(options.task_types))
        purpose = LENGTH_DRAWS[split]
        of_tasks = [
            generated(task, each, tokens, seed, i, purpose, tokens) for i, task in enumerate(options.task_types)
        ]
        return concatenate([sequences.samples(slice(each)) for sequences in of_tasks])

    return sequence_stream(
        "needle",
        parts,
        kind="tokens",
        outputs=Vocabulary(options.keys, options.words).size,
        experience_names=list(options.task_types),
        provenance={"dataset": "needle", "source": "generated", "files": {}},
        blur=options.blur,
        seed=seed,
        at_length=at_length,
    )


def generate(task: str, options: NeedleOptions, length: int, count: int, draws: Draws) -> Generated:
    """Generates sequences of a task; a distance is that of an answer's digit from where it stands in the needle.

    Raises:
        StreamDataError: they are too short.
    """
    import numpy as np

    from streams.generated import Generated
    from streams.sequences import IGNORED

    vocabulary = Vocabulary(options.keys, options.words)
    needles = {"single": 1, "multi_key": options.needles, "variable_tracking": options.hops + 1}[task]
    wide = 2 + max(options.digits, 2)  # a mark, a key, and digits or another key
    asked = 2 + options.digits  # the question with all of its answer
    places = (length - asked) // wide
    if needles > places:
        raise StreamDataError(
            f"length={length}: {needles} needles of {task} and a query need at least {needles * wide + asked} tokens"
        )
    if needles > vocabulary.keys:
        raise StreamDataError(f"keys={vocabulary.keys}: too few for {needles} needles of {task}")
    row = np.arange(count)[:, None]
    x = vocabulary.first_word + _text(vocabulary.words, count, length, draws)
    keys = vocabulary.first_key + draws.orders(count, vocabulary.keys)[:, :needles]
    values = draws.below(DIGITS, count, needles, options.digits)
    starts = wide * np.sort(draws.orders(count, places)[:, :needles], axis=1)
    chosen = draws.below(needles, count) if task == "multi_key" else np.full(count, needles - 1)
    source = np.zeros(count, dtype=np.int64) if task == "variable_tracking" else chosen  # the needle with the value
    handed = task == "variable_tracking"
    for needle in range(needles):
        at = starts[:, needle, None]
        x[row, at] = vocabulary.mark("let" if handed else "needle")
        x[row, at + 1] = keys[:, needle, None]
        if handed and needle:
            x[row, at + 2] = vocabulary.mark("=")
            x[row, at + 3] = keys[:, needle - 1, None]
        else:
            x[row, at + 2 + np.arange(options.digits)] = values[:, needle]
    first = length - asked
    answer = values[row[:, 0], source]
    x[:, first] = vocabulary.mark("?")
    x[:, first + 1] = keys[row[:, 0], chosen]
    x[:, first + 2 :] = answer
    targets = np.full((count, length), IGNORED, dtype=np.int32)
    targets[:, first + 1 : -1] = answer
    distances = np.zeros((count, length), dtype=np.int32)
    distances[:, first + 1 : -1] = first - starts[row[:, 0], source][:, None]
    return Generated(x.astype(np.int32), targets, distances, vocabulary.name)


def _text(words: int, count: int, length: int, draws: Draws) -> np.ndarray:
    """Returns words `[count, length]` of the Markov chain, int64."""
    import numpy as np

    from streams.counter_rng import Draws

    followers = Draws("words", words).orders(words, words)[:, :FOLLOWERS]
    chosen = draws.below(FOLLOWERS, length, count)
    text = np.empty((length, count), dtype=np.int64)
    text[0] = draws.below(words, count)
    for place in range(1, length):
        text[place] = followers[text[place - 1], chosen[place]]
    return text.T.copy()
