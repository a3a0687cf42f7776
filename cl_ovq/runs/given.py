"""A model and a stream that are given as objects, in the place of those that a configuration names.

For as long as they are given they are parts like any other, with the name `custom`: whatever builds a stream or a model
by name gets them, and the configuration of a run says which they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cl_ovq.config import ExperimentConfig
from cl_ovq.config.custom import CUSTOM, LENT
from cl_ovq.errors import UserError, own_code
from cl_ovq.mixers import DictionaryConfig
from cl_ovq.models.base import MODELS, ModelContext
from cl_ovq.options import option
from cl_ovq.runs.contract import check_contract
from streams import Stream, StreamDataError
from streams.given import lent

GivenModel = nn.Module | Callable[[Stream], nn.Module]


@dataclass
class GivenModelOptions:
    """What a configuration says of a model that was given as an object."""

    source: str = option("", "class or builder of a model passed from Python")


@dataclass
class Given:
    """What is given.

    Attributes:
        sections: what the configuration says of it, by section.
        config: of the run that a model is built for, which it is checked against; not checked if None.
    """

    sections: dict[str, Any] = field(default_factory=dict)
    config: ExperimentConfig | None = None


@contextmanager
def given(model: GivenModel | None, stream: Stream | None, *, copied: bool = False) -> Iterator[Given]:
    """Give a model and a stream for as long as the `with` block.

    Args:
        model: a module, or what makes one for a stream; None for the configuration's.
        stream: None for the configuration's.
        copied: whether a module stays as it is, and a copy of it is used.

    Raises:
        UserError: one of them is something else, or others are given already.
    """
    found = Given()
    with ExitStack() as stack:
        if stream is not None:
            if not isinstance(stream, Stream):
                raise UserError(
                    f"stream: a {type(stream).__name__} is not a stream: convert a benchmark with "
                    "streams.Stream.from_avalanche(benchmark)"
                )
            stack.enter_context(_at_hand("stream"))
            try:
                found.sections["stream"] = stack.enter_context(lent(stream, CUSTOM))
            except StreamDataError as error:
                raise UserError(f"stream: {error}") from error
        if model is not None:
            if not callable(model):
                raise UserError(f"model: {model!r} is neither a torch.nn.Module nor a function that returns one")
            stack.enter_context(_at_hand("model"))
            build = _builder(model, found, copied=copied)
            facts: Any = {"options": GivenModelOptions, "sections": {"dictionary": DictionaryConfig}}
            stack.enter_context(MODELS.lent(CUSTOM, "a model given from Python", build=build, **facts))
            found.sections["model"] = {"name": CUSTOM, "source": source_of(model)}
        yield found


@contextmanager
def _at_hand(section: str) -> Iterator[None]:
    if section in LENT:
        raise UserError(f"{section}: another run in this process that is still running has already passed one")
    LENT.add(section)
    try:
        yield
    finally:
        LENT.remove(section)


def source_of(model: GivenModel) -> str:
    """Return the full name of a module's class, or of the function that makes it."""
    named = type(model) if isinstance(model, nn.Module) or not hasattr(model, "__qualname__") else model
    return f"{named.__module__}.{named.__qualname__}"


def _builder(model: GivenModel, found: Given, *, copied: bool) -> Callable[..., nn.Module]:
    """Return a builder of the registry."""

    def build(options: GivenModelOptions, context: ModelContext) -> nn.Module:
        stream = context.stream
        if isinstance(model, nn.Module):
            made: Any = model
        else:
            with own_code(f"model: {source_of(model)}", model):
                made = model(stream)
        if not isinstance(made, nn.Module):
            raise UserError(
                f"model: {source_of(model)} returns a {type(made).__name__}, but must return a torch.nn.Module"
            )
        if found.config is not None:
            check_contract(made, found.config, stream)
        return copy.deepcopy(made) if copied else made

    return build
