"""What the checkpoint of a run must be like, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints.files import read_checkpoint
from cl_ovq.runs.validate import Count, first_mistake

# 1 had the history in it, and 2 the task of a dictionary beside the model.
VERSION = 3
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _About(BaseModel):
    config: dict[str, Any]
    imports: dict[str, list[str]] = {}  # older ones say nothing of them
    train_seconds: Seconds
    wall_seconds: Seconds


class _Mark(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: Count
    sha256: str


class _Model(BaseModel):
    """What every version has of the state."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    model: dict[str, Tensor]


class _Clock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    train_iterations: Count
    train_exp_counter: Count
    train_exp_epochs: Count
    train_exp_iterations: Count
    train_epoch_iterations: Count
    total_iterations: Count


Word = Annotated[int, Field(ge=0, lt=2**32)]


class _Random(BaseModel):
    """States of generators. NumPy and Python take some for granted that are not right."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    python: tuple[Literal[3], tuple[Word, ...], float | None]
    numpy: list[Any]
    torch: Tensor
    cuda: list[Tensor]

    @model_validator(mode="after")
    def _whole(self) -> _Random:
        keys = self.python[1]
        if len(keys) != 625 or keys[-1] > 624:
            raise ValueError("invalid state of Python's random number generator")
        kind, words, position, spare, normal = self.numpy
        fits = kind == "MT19937" and isinstance(words, Tensor) and words.shape == (624,) and words.dtype == torch.int64
        fits = fits and int(words.min()) >= 0 and int(words.max()) < 2**32
        if not fits or position not in range(625) or spare not in (0, 1) or type(normal) is not float:
            raise ValueError("invalid state of NumPy's random number generator")
        return self


class _Dictionary(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    last_written: tuple[Tensor, Tensor] | None


class _State(_Model):
    trained: dict[str, bool]
    dictionaries: dict[str, _Dictionary]
    optimizer: dict[str, Any]
    clock: _Clock
    strategy: Any
    plugins: list[Any]
    recorders: list[Any]
    plan: Count
    random: _Random


class _OlderRun(BaseModel):
    about: _About
    done: Count
    within: bool
    state: _Model


class _Run(_OlderRun):
    version: int
    history: _Mark
    state: _State


def read_run(path: Path) -> dict[str, Any]:
    """Read the checkpoint of a run, and check what can be checked of it alone.

    Raises:
        UserError: see `read_checkpoint`; or it is not that of a run.
    """
    run = read_checkpoint(path)
    if not isinstance(run, dict):
        raise UserError(f"{path} is not the checkpoint of a run")
    try:
        (_Run if run.get("version") == VERSION else _OlderRun).model_validate(run, strict=True)
    except ValidationError as error:
        raise UserError(f"{path} is not the checkpoint of a run: {first_mistake(error)}") from error
    return run
