"""How hyper-parameters are chosen: always on validation data, by a protocol that has a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_ovq.errors import UserError

STREAM = "validation"
MOST_SEEDS = 1000  # of a configuration
PROTOCOLS = {
    "end_of_stream": "the metric over the whole validation stream, after the last experience",
    "first_k_experiences": "the metric over the first experiences, on their validation data; no other is seen",
    "held_out_seeds": "as end_of_stream, averaged over several seeds, none of which is reported",
}


def check_protocol(
    name: str, *, experiences: int | None, seeds: Sequence[int], reported: Sequence[int], section: str
) -> None:
    """Make sure that a protocol has what it needs, and that no seed serves both choosing and reporting.

    Args:
        name: of the protocol.
        experiences: how many are learned where hyper-parameters are chosen; None for all.
        seeds: on which hyper-parameters are chosen.
        reported: on which the chosen ones are reported.
        section: of the file, for the message.

    Raises:
        UserError: naming the key.
    """
    check_seeds(seeds, f"{section}.seeds")
    if (name == "first_k_experiences") != (experiences is not None):
        raise UserError(
            f"{section}.experiences: required with first_k_experiences, and not allowed with any other protocol"
        )
    if name == "held_out_seeds" and len(seeds) < 2:
        raise UserError(f"{section}.seeds: held_out_seeds needs at least two different seeds")
    if both := sorted(set(seeds) & set(reported)):
        raise UserError(f"{section}.seeds: {both} are also reported: use other seeds for selection")


def check_seeds(seeds: Sequence[int], key: str) -> None:
    """Refuse no seeds, too many, and one that would count twice.

    Raises:
        UserError: naming the key.
    """
    if not seeds:
        raise UserError(f"{key}: give at least one seed")
    if len(seeds) > MOST_SEEDS:
        raise UserError(f"{key}: {len(seeds)} seeds are more than {MOST_SEEDS}")
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise UserError(f"{key}: {twice[0]} is listed twice")


def check_stream(stream: str, key: str = "evaluation.split") -> None:
    """Refuse to choose on anything but validation data.

    Raises:
        UserError: naming the key.
    """
    if stream != STREAM:
        raise UserError(f"{key}: hyperparameters are selected on the validation stream, never on '{stream}'")


def lacking_validation(options: Any) -> str | None:
    """Return the option of a stream that leaves it without validation data, being 0; None if it has some."""
    names = ("validation_fraction", "validation")  # of images, of sequences
    return next((f"stream.{name}" for name in names if getattr(options, name, None) == 0), None)


def check_validation(options: Any) -> None:
    """Refuse a stream without validation data.

    Raises:
        UserError: naming the option.
    """
    if option := lacking_validation(options):
        raise UserError(f"{option}: 0 leaves no validation data for selecting hyperparameters")
