"""Heads that are a learner with rested weights: what the stream teaches is in its state, and nowhere else.

Letters: `B` samples, `F` features of the encoder, `D` features that the learner takes, `C` classes, `V` features of a
class's code, or numbers of the vector that is to be told of a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cl_ovq.errors import UserError
from cl_ovq.in_context.learner import InContextLearner, random_codes
from cl_ovq.in_context.standardisation import projection_of, standardise, statistics_of
from cl_ovq.in_context.weights import bare_learner
from cl_ovq.mixers.state import dictionaries_of, rebuilt, tensors_of
from cl_ovq.models.gradient_free import GradientFreeHead, ValueHead
from cl_ovq.models.read_out import magnitude
from kernels import DictionaryState

STATE = "state_"  # names of the buffers that hold the state


class StateHead(GradientFreeHead):
    """Feeds samples and what is told of them through a learner, whose state is carried on; a query reads a copy of it.

    Features are standardised by those of the first experience (`begin`), and mapped to D by a random projection where
    they are more; or by what the learner brings, see `InContextLearner`.

    Args:
        features: F.
        classes: outputs.
        learner: its weights are not changed.
        seed: of the projection, and of what else is drawn.

    Raises:
        UserError: the learner is for features of one encoder, and these are others.

    Buffers:
        mean, deviation: `[1, F]`, that features are standardised by; the latter is zero before the first experience.
        state_0, ...: of the learner's mixers, as `state.tensors_of` yields them; none before the first sample.
    """

    mean: Tensor
    deviation: Tensor
    projection: Tensor | None

    def __init__(self, *, features: int, classes: int, learner: InContextLearner, seed: int) -> None:
        super().__init__(features=features, classes=classes)
        self.settings = {"seed": seed}
        self.learner = learner.requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("mean", torch.zeros(1, features))
        self.register_buffer("deviation", torch.zeros(1, features))
        self._draw(generator)
        projection = projection_of(features, learner.features, generator)
        self.register_buffer("projection", projection, persistent=False)
        self.fields = 0  # tensors of the state
        if self.given:
            if features != learner.features:
                raise UserError(
                    f"learner.features: its weights were trained on one encoder's {learner.features} "
                    f"features, but the model has {features}"
                )
            self.mean.copy_(learner.mean)
            self.deviation.copy_(learner.deviation)

    @abstractmethod
    def _draw(self, generator: torch.Generator) -> None:
        """Draw what follows from the seed, before the projection."""

    @property
    def states(self) -> list[Any] | None:
        """The state of each of the learner's blocks, of one sequence; None before the first sample."""
        if not self.fields:
            return None
        return rebuilt(self._form(), iter([getattr(self, f"{STATE}{i}") for i in range(self.fields)]))

    @property
    def dictionaries(self) -> list[DictionaryState]:
        """The dictionaries in the state; none before the first sample, or where no mixer has one."""
        return dictionaries_of(self.states or [])

    @property
    def nbytes(self) -> int:
        """Bytes carried from experience to experience: state, counts and statistics; weights and codes are given."""
        statistics = () if self.given else (self.mean, self.deviation)
        carried = (self.seen, *statistics, *(getattr(self, f"{STATE}{i}") for i in range(self.fields)))
        return sum(tensor.nbytes for tensor in carried)

    @property
    def given(self) -> bool:
        """Whether how features are standardised comes with the learner."""
        return bool(self.learner.deviation.any())

    @property
    def standardised(self) -> bool:
        """Whether features have been standardised."""
        return bool(self.deviation.any())

    @torch.no_grad()
    def begin(self, features: Tensor) -> None:
        """Standardise all features to come by those `[B, F]` of the first experience."""
        scale = magnitude(features.float())
        mean, deviation = statistics_of(features.float() / scale)
        self.mean.copy_(scale * mean)
        self.deviation.copy_(scale * deviation)

    def _read(self, x: Tensor, codes: Tensor) -> None:
        """Take samples `[B, F]` with what is told of them `[B, V]` into the state."""
        with self.learner.at_length(self.tokens + len(x)):
            _, states = self.learner(self._standardised(x)[None], codes[None], self.states, return_state=True)
        self._keep([tensor.detach() for tensor in tensors_of(states)])

    def _keep(self, tensors: list[Tensor]) -> None:
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"{STATE}{number}", tensor)
        self.fields = len(tensors)

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """Answer with the state before the first sample in the `with` block, among the classes that were seen."""
        fields, self.fields, self._prepared = self.fields, 0, None
        try:
            yield
        finally:
            self.fields, self._prepared = fields, None

    def _prepare(self) -> list[Any] | None:
        return self.states

    def _told(self, x: Tensor, prepared: list[Any] | None) -> Tensor:
        """Return what the learner tells `[B, V]` of samples `[B, F]`."""
        with self.learner.at_length(self.tokens):
            return self.learner.ask(self._standardised(x)[None], prepared)[0]

    def _standardised(self, x: Tensor) -> Tensor:
        return standardise(x, self.mean, self.deviation, self.projection)

    def _form(self) -> list[Any]:
        """Return a state of the right form, of one token."""
        with torch.no_grad():
            x = self.mean.new_zeros(1, 1, self.learner.features)
            return self.learner(x, None, return_state=True)[1]

    def carried_like(self) -> list[tuple[torch.dtype, tuple[int | None, ...]]]:
        """Return type and shape of each tensor of a state, with None for a size that depends on what was seen."""
        with torch.no_grad():
            x = self.mean.new_zeros(1, 2, self.learner.features)
            longer = tensors_of(self.learner(x, None, return_state=True)[1])
        pairs = zip(tensors_of(self._form()), longer, strict=True)
        return [
            (one.dtype, tuple(a if a == b else None for a, b in zip(one.shape, other.shape, strict=True)))
            for one, other in pairs
        ]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Load a state, which may be another number of tokens long, or none yet."""
        saved = [key for key in state_dict if key.removeprefix(prefix).startswith(STATE)]
        for number in range(self.fields):
            delattr(self, f"{STATE}{number}")
        self._keep([torch.empty_like(state_dict[f"{prefix}{STATE}{number}"]) for number in range(len(saved))])
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class InContextHead(StateHead):
    """Classes learned in the state: each has a random code, which follows from the seed.

    Args:
        features, learner, seed: see `StateHead`.
        classes: C, the most that can come.

    Buffers:
        counts: samples of each class, `[C]` int64.
    """

    counts: Tensor
    codes: Tensor

    @classmethod
    def made_again(cls, config: Any, **settings: Any) -> InContextHead:
        """Make the head of a trained model, whose weights are loaded with its state."""
        return cls(learner=bare_learner(config.learner, config.dictionary), **settings)

    def _draw(self, generator: torch.Generator) -> None:
        self.register_buffer("counts", torch.zeros(self.classes, dtype=torch.int64))
        codes = random_codes(self.classes, self.learner.code, generator=generator)
        self.register_buffer("codes", codes, persistent=False)

    @property
    def seen(self) -> Tensor:
        """Samples of each class so far, `[C]` int64."""
        return self.counts

    def _learn(self, x: Tensor, y: Tensor) -> None:
        if not self.standardised:
            self.begin(x)
        self._read(x, self.codes[y])
        self.counts += torch.bincount(y, minlength=self.classes)

    def _scores(self, x: Tensor, prepared: list[Any] | None) -> Tensor:
        return self.learner.logits(self._told(x, prepared), self.codes)


class InContextValues(ValueHead, StateHead):
    """Vectors learned in the state: of a sample without one the learner tells it, and that is the answer.

    Args:
        features, seed: see `StateHead`.
        classes: V.
        learner: a `ValueLearner`, which brings how features are standardised: how large a sample is stays.

    Raises:
        UserError: the learner tells vectors of another size.

    Buffers:
        count: samples so far, int64.
    """

    count: Tensor

    def __init__(self, *, features: int, classes: int, learner: InContextLearner, seed: int) -> None:
        if learner.code != classes:
            raise UserError(
                f"learner.code: {learner.code}, but the stream's targets have {classes} numbers: use "
                f"learner.code={classes}"
            )
        super().__init__(features=features, classes=classes, learner=learner, seed=seed)

    @classmethod
    def made_again(cls, config: Any, **settings: Any) -> InContextValues:
        """Make the head of a trained model, whose weights are loaded with its state."""
        return cls(learner=bare_learner(config.learner, config.dictionary, "vectors"), **settings)

    def _draw(self, generator: torch.Generator) -> None:
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def seen(self) -> Tensor:
        """Samples so far, `[]` int64."""
        return self.count

    def _learn(self, x: Tensor, y: Tensor) -> None:
        self._read(x, y)
        self.count += len(x)

    def _scores(self, x: Tensor, prepared: list[Any] | None) -> Tensor:
        return self._told(x, prepared)

    def _standardised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation
