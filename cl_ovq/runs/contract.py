"""What a model from outside must be, for the run that it is given to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError, is_foreign, own_code
from cl_ovq.mixers import Mixer, checked_mixers
from cl_ovq.models.freezing import encoder_parameters, learns
from cl_ovq.seeding import unchanged_randomness
from cl_ovq.strategies import STRATEGIES

if TYPE_CHECKING:
    from streams import Stream


def check_contract(network: nn.Module, config: ExperimentConfig, stream: Stream) -> None:
    """Check a model on two samples of the stream: its outputs, those of its mixers, and what else is needed of it.

    Args:
        network: maps a batch to logits `[B, n_classes]`; of a stream of sequences `[B, T, n_classes]`, or numbers
            `[B, T]`. Its last layer is called `head`, and what comes before it `features`, where that is needed. It is
            left as it was.
        config: names strategy and head.
        stream: to be learned.

    Raises:
        UserError: saying what is missing, and what for.
    """
    name, reasons, features = type(network).__name__, _needs_head(network, config), _needs_features(config)
    head = getattr(network, "head", None)
    if reasons and not isinstance(head, nn.Linear):
        raise UserError(f"model: {name} has no last layer `head` that is an nn.Linear, which {reasons[0]} needs")
    if features and not callable(getattr(network, "features", None)):
        raise UserError(f"model: {name} has no method `features`, which {features} needs")
    if config.evaluation.lengths and not (hasattr(network, "forward_with_state") and hasattr(network, "state_bytes")):
        raise UserError(
            f"model: {name} has no methods `forward_with_state` and `state_bytes`, which evaluation.lengths needs"
        )
    _check_trainable(network, config)
    rows = torch.arange(min(2, len(stream.samples)))
    x = stream.samples.gather(rows)
    given = _check_outputs(network, name, x, stream, states=bool(config.evaluation.lengths))
    if reasons and not given:
        raise UserError(f"model: {name} does not call its `head` in its forward pass, which {reasons[0]} needs")
    if features:
        _check_features(network, x, given[-1], stream, features)
    if not torch.allclose(x, stream.samples.gather(rows), rtol=0, atol=0, equal_nan=True):
        raise UserError(
            f"model: {name} modifies its input batch in place, but strategies read it again: let it work on a copy"
        )
    _check_gradients(network, x, config, stream)


def check_head(network: nn.Module, head: str, stream: Stream) -> None:
    """Check that a model maps two samples of the stream to logits with a head of the user's own.

    Args:
        network: with the head on, without task labels.
        head: its name.
        stream: to be learned.

    Raises:
        UserError: it does not.
    """
    x = stream.samples.gather(torch.arange(min(2, len(stream.samples))))
    _check_outputs(network, f"{type(network).__name__} with model.head={head}", x, stream)


def _check_outputs(network: nn.Module, name: str, x: Tensor, stream: Stream, *, states: bool = False) -> list[Any]:
    """Refuse outputs of another shape for the stream's first samples; return what the head was given of them."""
    with _as_it_was(network):
        outputs, given = _tried(network, name, x, stream, states=states)
    targets = stream.samples.targets[: len(x)]
    numbers = stream.kind in ("values", "vectors")
    wanted = tuple(targets.shape) if numbers else (*targets.shape, stream.n_classes)
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
        raise UserError(
            f"model: {name} maps {len(x)} samples of '{stream.name}' to {_form(outputs)}, but must map them to "
            f"{list(wanted)}"
        )
    return given


def _check_trainable(network: nn.Module, config: ExperimentConfig) -> None:
    """Refuse a model that a strategy is to train by gradients, and that has no weights for that."""
    if STRATEGIES[config.strategy.name].is_head or config.memory is not None:
        return
    mode = config.model.train_encoder
    which, trained = ("", network) if mode == "always" else ("of its `head` ", cast(nn.Module, network.head))
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        raise UserError(
            f"model: {type(network).__name__} has no parameter {which}that requires a gradient, which "
            f"strategy.name={config.strategy.name} with model.train_encoder={mode} needs"
        )


def _check_features(network: nn.Module, x: Tensor, given: Any, stream: Stream, reason: str) -> None:
    """Refuse a method `features` that is not what the head is given: another thing would be learned than is asked for.

    Args:
        network: the model.
        x: a batch.
        given: what its head was given of that batch.
        stream: that the batch is of.
        reason: that features are needed for.
    """
    what = f"model: {type(network).__name__}.features"
    taken = f"what `head` is given, which {reason} needs"
    fails = own_code(f"{what} does not take a batch of the stream '{stream.name}'", network)
    with fails, _as_it_was(network), torch.no_grad():
        found = cast(Any, network.eval()).features(x)
    wanted = [len(x), cast(nn.Linear, network.head).in_features]
    if not (isinstance(found, Tensor) and found.is_floating_point() and list(found.shape) == wanted):
        kind = "floats " if isinstance(found, Tensor) and not found.is_floating_point() else ""
        raise UserError(
            f"{what} maps {len(x)} samples of '{stream.name}' to {_form(found)}, but must map them to "
            f"{kind}{wanted}: {taken}"
        )
    if not (found.shape == given.shape and torch.allclose(found, given, rtol=1e-3, atol=1e-5, equal_nan=True)):
        raise UserError(f"{what} returns different values than {taken}")


def _check_gradients(network: nn.Module, x: Tensor, config: ExperimentConfig, stream: Stream) -> None:
    """Refuse a model whose training would train nothing, or not the encoder where only that is to be trained."""
    if STRATEGIES[config.strategy.name].is_head:
        return
    name, mode = type(network).__name__, config.model.train_encoder
    encoder = learns(network) and mode != "never"
    if config.memory is not None and not encoder:
        return
    what, needs, hint = "", f"strategy.name={config.strategy.name} needs", ""
    parameters = list(network.parameters() if encoder else cast(nn.Module, network.head).parameters())
    if encoder and (config.memory is not None or mode == "first_experience"):
        what, hint = " but those of `head`", ": use model.train_encoder=never"
        reason = "model.head=memory with " if config.memory is not None else ""
        parameters, needs = encoder_parameters(network), f"{reason}model.train_encoder={mode} needs"
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    reached: tuple[Tensor | None, ...] = ()
    with _as_it_was(network), own_code(f"model: {name} has no backward pass", network):
        outputs, _ = _tried(network, name, x, stream, training=True)
        if outputs.requires_grad:
            reached = torch.autograd.grad(outputs.float().sum(), trained, allow_unused=True)
    if all(gradient is None for gradient in reached):
        raise UserError(f"model: no gradient reaches a parameter of {name}{what} in training, which {needs}{hint}")


def _tried(
    network: nn.Module, name: str, x: Tensor, stream: Stream, *, training: bool = False, states: bool = False
) -> tuple[Any, list[Any]]:
    """Return what a model makes of a batch, and what its head was given in each call.

    Args:
        network: the model.
        name: what it is called.
        x: the batch.
        stream: that it is of.
        training: whether in training mode, with gradients.
        states: whether its mixers' states will be carried on.
    """
    how = " in training mode" if training else ""
    what = f"model: {name} does not take a batch of the stream '{stream.name}'{how}"
    given: list[Any] = []
    head = getattr(network, "head", None)
    watch = None
    if isinstance(head, nn.Module):
        watch = head.register_forward_hook(lambda _, inputs, __: given.append(inputs[0] if inputs else None))
    try:
        checked = checked_mixers(network, "model", states=states)
        own = (mixer for mixer in network.modules() if isinstance(mixer, Mixer) and is_foreign(type(mixer)))
        with own_code(what, next(own, network)), checked, torch.set_grad_enabled(training):
            return network.train(training)(x), given
    finally:
        if watch is not None:
            watch.remove()


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Put the modes of a model's modules, its buffers and the global generators back."""
    modes = {module: module.training for module in network.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modes
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    try:
        with unchanged_randomness():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer)
                buffer.copy_(before)


def _form(found: Any) -> str:
    """Return in words what came instead of floats of some shape."""
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}"
    return str(list(found.shape)) if found.is_floating_point() else f"{found.dtype} {list(found.shape)}"


def _needs_features(config: ExperimentConfig) -> str:
    """Return what reads a model's features by themselves; empty where nothing does."""
    if config.learner is not None or STRATEGIES[config.strategy.name].aligns_head:
        return f"strategy.name={config.strategy.name}"
    return "memory.calibrate" if config.memory is not None and config.memory.calibrate else ""


def _needs_head(network: nn.Module, config: ExperimentConfig) -> list[str]:
    """Return what replaces a model's head, trains it alone or freezes all but it."""
    strategy = STRATEGIES[config.strategy.name]
    found = {
        f"strategy.name={config.strategy.name}": strategy.is_head or strategy.aligns_head,
        f"model.head={config.model.head}": config.model.head != "linear",
        f"model.train_encoder={config.model.train_encoder}": config.model.train_encoder != "always",
        "a model of which nothing is to be trained": not learns(network),
    }
    return [reason for reason, needed in found.items() if needed]
