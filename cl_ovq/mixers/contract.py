"""Checks of what a mixer returns, made in a model's trial pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from cl_ovq.errors import UserError, is_foreign
from cl_ovq.mixers.base import Mixer
from cl_ovq.mixers.state import tensors_of


@contextmanager
def checked_mixers(network: nn.Module, section: str, *, states: bool = False) -> Iterator[None]:
    """Refuse, in a `with` block, what a mixer returns if it is no sequence like the one it was given.

    It will be added to that, and broadcasting would take some others in silence. The user's own mixers must be causal
    too, which is checked in evaluation mode.

    Args:
        network: whose mixers are called.
        section: of the configuration that names them, for messages.
        states: whether the user's own must go on from their states as if sequences had never been cut.

    Raises:
        UserError: naming the mixer, and what is wrong.
    """
    trying: list[nn.Module] = []  # a mixer that is being called in pieces

    def check(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mixed: Any) -> None:
        if trying:
            return
        x = args[0] if args else kwargs["x"]
        what, wanted = f"{section}: mixer {type(mixer).__name__}", list(x.shape)
        y = mixed[0] if isinstance(mixed, tuple) and len(mixed) == 2 else mixed
        if y is mixed or not isinstance(y, Tensor) or list(y.shape) != wanted:
            found = list(y.shape) if y is not mixed and isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise UserError(
                f"{what} maps tokens {wanted} to {found}; it must return (y, state) with y of shape {wanted}"
            )
        whole = not any(kwargs.get(name) is not None for name in ("mask", "state"))
        if is_foreign(type(mixer)) and not mixer.training and whole and x.shape[1] > 1:
            trying.append(mixer)
            try:
                _check_pieces(mixer, x, y, what, states)
            finally:
                trying.pop()

    mixers = [module for module in network.modules() if isinstance(module, Mixer)]
    watches = [mixer.register_forward_hook(check, with_kwargs=True) for mixer in mixers]
    try:
        yield
    finally:
        for watch in watches:
            watch.remove()


def _check_pieces(mixer: nn.Module, x: Tensor, y: Tensor, what: str, states: bool) -> None:
    """Refuse a mixer whose first outputs depend on later tokens, or whose later ones lack what its state must hold."""
    cut = x.shape[1] // 2
    with torch.no_grad():
        first, state = mixer(x[:, :cut], return_state=True)
        if not _alike(first, y[:, :cut]):
            raise UserError(f"{what} is not causal: the first {cut} outputs depend on later tokens")
        if not states:
            return
        try:
            list(tensors_of(state))
        except TypeError as error:
            raise UserError(f"{what}: {error}") from error
        second, _ = mixer(x[:, cut:], state=state, return_state=True)
        cast(Mixer, mixer).state_bytes(cut)  # which would fail once all is trained
    if not _alike(second, y[:, cut:]):
        raise UserError(
            f"{what} does not continue from its state: a sequence split over two calls gives different outputs; with "
            "return_state=True it must return everything that later tokens need"
        )


def _alike(found: Any, wanted: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    return torch.allclose(found / scale, wanted / scale, rtol=1e-3, atol=1e-3, equal_nan=True)
