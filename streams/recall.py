"""In-context recall: keys are bound to values, then asked for (Arora et al. 2023, "Zoology").

Three rules, by what happens when a key is bound more than once:

    recall               k3 v1 k7 v4 . .  k7->v4 v4  k3->v1 v1      a key is bound once
    positional_recall    k3 v1 k3 v6 . .  k3->v1 v1  k3->v6 v6      its first question asks for its first value, ...
    rebinding            k3 v1 k3 v6 . .  k3->v6 v6                 its last value counts

An arrow is a target; the value itself follows. Between are fillers, tokens of their own that bind nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.errors import StreamDataError
from streams.options import blur_option, count_option

if TYPE_CHECKING:
    import numpy as np

    from streams.counter_rng import Draws
    from streams.generated import Generated
    from streams.sequences import SequenceSamples
    from streams.stream import Stream

SHIFTS = ("none", "keys", "values", "length", "pairs")
GAPS = ("uniform", "power_law", "end")


@dataclass
class RecallOptions:
    """In-context recall."""

    experiences: int = count_option(3, "number of experiences")
    shift: str = field(
        default="keys",
        metadata={
            "help": "what changes between experiences: nothing; keys or values: each uses a subset; length "
            "or pairs: doubled each time",
            "choices": SHIFTS,
        },
    )
    length: int = count_option(64, "tokens per sequence, an even number", minimum=4)
    pairs: int = count_option(8, "distinct keys per sequence")
    questions: int | None = field(
        default=None,
        metadata={
            "help": "queries per sequence; one per binding if null",
            "minimum": 1,
            "maximum": 100_000_000,
        },
    )
    keys: int = count_option(96, "number of possible keys")
    values: int = count_option(96, "number of possible values")
    fillers: int = count_option(8, "number of possible filler tokens")
    gaps: str = field(
        default="uniform",
        metadata={
            "help": "where queries follow the bindings: anywhere; power_law: a gap's probability is "
            "proportional to its inverse, as in multi-query associative recall; end: all at the end "
            "of the sequence",
            "choices": GAPS,
        },
    )
    train: int = count_option(2000, "training sequences per experience")
    validation: int = count_option(200, "validation sequences per experience; 0: no validation stream", minimum=0)
    test: int = count_option(200, "test sequences per experience")
    blur: float = blur_option()


@dataclass
class RepeatedRecallOptions(RecallOptions):
    """In-context recall of keys that are bound several times."""

    repeats: int = count_option(2, "values that each key is bound to in turn")


def build_recall(rule: str, options: RecallOptions, *, seed: int) -> Stream:
    """Builds the stream of a rule: `recall`, `positional_recall` or `rebinding`.

    Raises:
        StreamDataError: the options do not fit each other.
    """
    from streams.sequences import LENGTH_DRAWS, concatenate, sequence_stream

    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    settings = [experience_settings(rule, options, experience) for experience in range(options.experiences)]
    for setting in settings:
        setting.check()
    parts: dict[str, list[SequenceSamples]] = {name: [] for name in sizes}
    for experience, setting in enumerate(settings):
        whole = distinct_sequences(setting, sum(sizes.values()), rule, seed, experience)
        for name, found in whole.parts(sizes).items():
            parts[name].append(found)

    def at_length(tokens: int, count: int, split: str) -> SequenceSamples:
        purpose = LENGTH_DRAWS[split]
        found = []
        for experience, setting in enumerate(settings):
            longer = replace(setting, length=tokens)
            longer.check()
            size = (count + len(settings) - 1) // len(settings)
            whole = distinct_sequences(longer, size, rule, seed, experience, purpose, tokens)
            found.append(whole.samples(slice(0, size)))
        return concatenate(found)

    return sequence_stream(
        rule,
        parts,
        kind="tokens",
        outputs=options.keys + options.values + options.fillers,
        experience_names=[setting.name for setting in settings],
        provenance={"dataset": rule, "source": "generated", "files": {}},
        blur=options.blur,
        seed=seed,
        at_length=at_length,
    )


@dataclass(frozen=True)
class Setting:
    """One experience: ranges and numbers.

    Attributes:
        rule: `recall`, `positional_recall` or `rebinding`.
        name: what it is called.
        length: tokens.
        pairs: different keys of a sequence.
        repeats: values that each is bound to.
        questions: keys that are asked for.
        keys: tokens of the keys, first and end.
        values: tokens of the values, first and end.
        fillers: tokens of the fillers, first and end.
        key_tokens: tokens that are keys in any experience; the first ones.
        gaps: where questions are put.
    """

    rule: str
    name: str
    length: int
    pairs: int
    repeats: int
    questions: int
    keys: tuple[int, int]
    values: tuple[int, int]
    fillers: tuple[int, int]
    key_tokens: int
    gaps: str

    @property
    def most_questions(self) -> int:
        """How many questions have an answer that no other question gives away."""
        return self.pairs * self.repeats if self.rule == "positional_recall" else self.pairs

    def token_name(self, token: int) -> str:
        """Returns what a token is called."""
        if token < self.key_tokens:
            return f"k{token}"
        return f"v{token - self.key_tokens}" if token < self.fillers[0] else "."

    def check(self) -> None:
        """Refuses what does not fit.

        Raises:
            StreamDataError: saying what must change.
        """
        needed = 2 * (self.pairs * self.repeats + self.questions)
        if self.length % 2:
            raise StreamDataError(f"length={self.length}: must be even, because a key and its value are two tokens")
        if needed > self.length:
            raise StreamDataError(
                f"length={self.length}: {self.pairs * self.repeats} bindings and {self.questions} queries need at "
                f"least {needed} tokens ({self.name})"
            )
        if self.keys[1] - self.keys[0] < self.pairs:
            raise StreamDataError(
                f"keys: an experience has only {self.keys[1] - self.keys[0]}, too few for pairs={self.pairs}"
            )
        if self.values[1] - self.values[0] < max(2, self.repeats):
            raise StreamDataError(
                f"values: an experience has only {self.values[1] - self.values[0]}, but needs {max(2, self.repeats)}"
            )
        if self.questions > self.most_questions:
            raise StreamDataError(f"questions={self.questions}: must be at most {self.most_questions} ({self.name})")


def experience_settings(rule: str, options: Any, experience: int) -> Setting:
    """Returns what an experience is like under the options' shift."""
    count, repeats = options.experiences, getattr(options, "repeats", 1)

    def part(first: int, size: int, shifted: bool) -> tuple[int, int]:
        if not shifted:
            return first, first + size
        return first + size * experience // count, first + size * (experience + 1) // count

    factor = 2**experience
    pairs = options.pairs * (factor if options.shift == "pairs" else 1)
    names = {
        "none": f"part {experience + 1}",
        "keys": f"keys {experience + 1}/{count}",
        "values": f"values {experience + 1}/{count}",
        "length": f"{options.length * factor} tokens",
        "pairs": f"{pairs} pairs",
    }
    setting = Setting(
        rule=rule,
        name=names[options.shift],
        length=options.length * (factor if options.shift == "length" else 1),
        pairs=pairs,
        repeats=repeats,
        questions=options.questions or 0,
        keys=part(0, options.keys, options.shift == "keys"),
        values=part(options.keys, options.values, options.shift == "values"),
        fillers=part(options.keys + options.values, options.fillers, False),
        key_tokens=options.keys,
        gaps=options.gaps,
    )
    return setting if setting.questions else replace(setting, questions=setting.most_questions)


def distinct_sequences(setting: Setting, count: int, *purpose: str | int) -> Generated:
    """Generates sequences of which no two are the same.

    Raises:
        StreamDataError: there are not so many.
    """
    from streams.generated import distinct

    hint = f"{setting.length} tokens with pairs={setting.pairs} ({setting.name}): ask for fewer, or for more keys"
    return distinct(partial(generate, setting), count, hint, *purpose)


def generate(setting: Setting, count: int, draws: Draws) -> Generated:
    """Generates sequences under the rule of a setting."""
    import numpy as np

    from streams.generated import Generated
    from streams.sequences import IGNORED

    pairs, repeats, questions = setting.pairs, setting.repeats, setting.questions
    bindings, slots = pairs * repeats, setting.length // 2
    row = np.arange(count)[:, None]
    keys = setting.keys[0] + draws.orders(count, setting.keys[1] - setting.keys[0])[:, :pairs]
    values = np.stack(
        [draws.orders(count, setting.values[1] - setting.values[0])[:, :repeats] for _ in range(pairs)], 1
    )
    values += setting.values[0]  # [n, pairs, repeats], those of a key all different

    # Which key each binding binds, and for the how-manieth time; the same for questions.
    bound = draws.orders(count, bindings) % pairs
    bound_rank = _ranks(bound, pairs)
    asked = draws.orders(count, setting.most_questions)[:, :questions] % pairs
    asked_rank = _ranks(asked, pairs)
    if setting.rule == "rebinding":
        asked_rank = np.full_like(asked_rank, repeats - 1)
    where = np.empty((count, pairs, repeats), dtype=np.int64)  # the slot of each binding
    where[row, bound, bound_rank] = np.arange(bindings)
    places = bindings + _places(setting, slots - bindings, count, draws)  # [n, questions], ascending

    inputs = setting.fillers[0] + draws.below(setting.fillers[1] - setting.fillers[0], count, setting.length)
    targets = np.full((count, setting.length), IGNORED, dtype=np.int32)
    distances = np.zeros((count, setting.length), dtype=np.int32)
    inputs[:, 0 : 2 * bindings : 2] = keys[row, bound]
    inputs[:, 1 : 2 * bindings : 2] = values[row, bound, bound_rank]
    answers = values[row, asked, asked_rank]
    inputs[row, 2 * places] = keys[row, asked]
    inputs[row, 2 * places + 1] = answers
    targets[row, 2 * places] = answers
    distances[row, 2 * places] = 2 * (places - where[row, asked, asked_rank])
    return Generated(inputs.astype(np.int32), targets, distances, setting.token_name)


def _ranks(which: np.ndarray, pairs: int) -> np.ndarray:
    """Returns how often each entry of `which` `[n, m]` came before in its row."""
    import numpy as np

    counts = np.zeros((len(which), pairs), dtype=np.int64)
    ranks = np.empty_like(which)
    row = np.arange(len(which))
    for place in range(which.shape[1]):
        ranks[:, place] = counts[row, which[:, place]]
        counts[row, which[:, place]] += 1
    return ranks


def _places(setting: Setting, free: int, count: int, draws: Draws) -> np.ndarray:
    """Returns the slots of the questions, counted from the end of the bindings, ascending: `[n, questions]`."""
    import numpy as np

    if setting.gaps == "end":
        return np.broadcast_to(np.arange(free - setting.questions, free), (count, setting.questions))
    if setting.gaps == "uniform":
        return np.sort(draws.orders(count, free)[:, : setting.questions], axis=1)
    # Power law: gap g has weight 1 / g, in whole numbers, and is taken once.
    weights = np.broadcast_to((1 << 20) // np.arange(1, free + 1), (count, free)).copy()
    weights = np.maximum(weights, 1)
    row, places = np.arange(count), np.empty((count, setting.questions), dtype=np.int64)
    for question in range(setting.questions):
        total = weights.cumsum(axis=1)
        drawn = draws.below(total[:, -1], count)
        places[:, question] = (total <= drawn[:, None]).sum(axis=1)
        weights[row, places[:, question]] = 0
    return np.sort(places, axis=1)
