"""What a mixer must return, checked while a model is tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cl_ovq.errors import UserError
from cl_ovq.mixers.base import Mixer


@contextmanager
def checked_mixers(network: nn.Module, section: str) -> Iterator[None]:
    """Refuse, in a `with` block, what a mixer returns if it is no sequence like the one it was given.

    It will be added to that, and broadcasting would take some others in silence.

    Args:
        network: whose mixers are called.
        section: of the configuration that names them, for messages.

    Raises:
        UserError: naming the mixer and both shapes.
    """

    def check(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mixed: Any) -> None:
        wanted = list((args[0] if args else kwargs["x"]).shape)
        y = mixed[0] if isinstance(mixed, tuple) and len(mixed) == 2 else mixed
        if y is mixed or not isinstance(y, Tensor) or list(y.shape) != wanted:
            found = list(y.shape) if y is not mixed and isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise UserError(
                f"{section}: mixer {type(mixer).__name__} maps tokens {wanted} to {found}, and must to (y, state) with "
                f"y of {wanted}"
            )

    mixers = [module for module in network.modules() if isinstance(module, Mixer)]
    watches = [mixer.register_forward_hook(check, with_kwargs=True) for mixer in mixers]
    try:
        yield
    finally:
        for watch in watches:
            watch.remove()
