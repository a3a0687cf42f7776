"""Encoders that are trained, from a layer on, by LoRA or by prompts, as the trunk of a model."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from cl_ovq.encoders.base import AnyEncoderOptions, EncoderOptions, needed
from cl_ovq.encoders.network import EncoderNetwork, named_module
from cl_ovq.encoders.prompted import prompted
from cl_ovq.encoders.prompts import PromptOptions
from cl_ovq.errors import UserError, first_line

ADAPTER = "default"  # what peft calls LoRA's matrices
WHOLE = "all"  # in the place of a layer: the whole encoder is trained


def is_tuned(options: AnyEncoderOptions, strategy: Any) -> TypeGuard[EncoderOptions]:
    """Return whether an encoder is trained; one that is not is frozen, as all are that read texts.

    Args:
        options: the section `encoder` of a configuration.
        strategy: its section `strategy`, which may put prompts into the encoder.
    """
    if not isinstance(options, EncoderOptions):
        return False
    given = options.train_from is not None or options.lora_rank is not None
    return given or isinstance(strategy, PromptOptions)


def check_tuning(options: AnyEncoderOptions, strategy: Any) -> None:
    """Check that options of training fit each other; see `is_tuned`.

    Raises:
        UserError: they do not.
    """
    if isinstance(strategy, PromptOptions):
        _check_prompts(options, strategy)
    if not isinstance(options, EncoderOptions):
        return
    if options.train_from is not None and options.lora_rank is not None:
        raise UserError("encoder.lora_rank: LoRA trains nothing else: remove encoder.train_from")
    if options.lora_modules and options.lora_rank is None:
        raise UserError("encoder.lora_modules: used only with encoder.lora_rank")
    if options.lora_rank is None and _given(options, "lora_alpha"):
        raise UserError("encoder.lora_alpha: used only with encoder.lora_rank")
    if options.lora_merge and options.lora_rank is None:
        raise UserError("encoder.lora_merge: used only with encoder.lora_rank")
    if not is_tuned(options, strategy):
        return
    if options.precision == "float16":
        raise UserError("encoder.precision: gradients would underflow in float16: use bfloat16 or float32")
    if key := _given(options, "batch_size", "cache", "cache_dir"):
        instead = ", and strategy.batch_size is what counts" if key == "batch_size" else ""
        raise UserError(
            f"encoder.{key}: has no effect: features of a trained encoder are not cached{instead}: remove it"
        )


def _given(options: EncoderOptions, *keys: str) -> str | None:
    """Return the first of these keys whose value is not its default, if any."""
    return next((key for key in keys if getattr(options, key) != getattr(type(options), key)), None)


def _check_prompts(options: AnyEncoderOptions, strategy: Any) -> None:
    """Check that an encoder can be given prompts, as far as that is known before it is built."""
    what = f"strategy.name={strategy.name} puts prompts into the encoder"
    if not isinstance(options, EncoderOptions):
        raise UserError(f"encoder.name: {what}, which must be a vision transformer: use encoder.name=timm")
    given = {"train_from": options.train_from, "lora_rank": options.lora_rank, "layer": options.layer}
    for key, value in given.items():
        if value is not None:
            why = "and takes features of the whole" if key == "layer" else "and trains nothing else of it"
            raise UserError(f"encoder.{key}: {what}, {why}: remove it")
    if _given(options, "pool"):
        raise UserError(f"encoder.pool: {what}, whose features are already a vector: remove it")


def tuned(network: EncoderNetwork, options: EncoderOptions, strategy: Any, experiences: int) -> EncoderNetwork:
    """Let a part of an encoder be trained; the rest keeps its weights, and computes in evaluation mode.

    Args:
        network: the encoder, with its weights.
        options: which part.
        strategy: the section of a configuration, which may put prompts into the encoder.
        experiences: of the stream.

    Raises:
        UserError: there is no such part, or no place for prompts, or the library for LoRA is missing.
    """
    if isinstance(strategy, PromptOptions):
        return prompted(network, strategy, experiences)
    network.requires_grad_(False)
    if options.lora_rank is not None:
        _inject(network.backbone, options, options.lora_rank)
    elif options.train_from == WHOLE:
        network.requires_grad_(True)
        network.still = ()
    else:
        assert options.train_from is not None
        _unfreeze(network, options.train_from)
    return network.train(network.training)


def _unfreeze(network: EncoderNetwork, first: str) -> None:
    """Train a module and all that are listed after it."""
    backbone = network.backbone
    named_module(backbone, first, "encoder.train_from")
    names = [name for name, _ in backbone.named_modules()]
    start = names.index(first)
    around = [name for name in names[:start] if not name or first.startswith(f"{name}.")]
    network.still = tuple(f"backbone.{name}" for name in names[:start] if name not in around)
    for name in names[start:]:
        backbone.get_submodule(name).requires_grad_(True)
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise UserError(f"encoder.train_from: neither '{first}' nor any later module has weights")


def _inject(backbone: nn.Module, options: EncoderOptions, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise needed("peft", "peft", error) from error
    modules = options.lora_modules or _linear_layers(backbone)
    if not modules:
        raise UserError("encoder.lora_modules: the encoder has no linear layers: set the modules, e.g. [conv1]")
    config = LoraConfig(r=rank, lora_alpha=options.lora_alpha, target_modules=modules)
    try:
        inject_adapter_in_model(config, backbone, ADAPTER)
    except ValueError as error:  # peft's: there are no such modules, or of a kind that it does not know
        raise UserError(f"encoder.lora_modules: {first_line(error)}") from error


def merge_lora(network: nn.Module) -> list[nn.Parameter]:
    """Add LoRA's matrices to the weights beside which they stand, and draw others, which add nothing yet.

    Returns:
        The matrices, which are drawn by PyTorch's generator.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        if not layer.merged:  # that of an attention merges its own layers
            layer.merge()
    for layer in layers:
        layer.merged_adapters.clear()  # the weights are what they are from now on
        layer.reset_lora_parameters(ADAPTER, init_lora_weights=True)
    return [weight for name, weight in network.named_parameters() if f".{ADAPTER}" in name and "lora_" in name]


def _linear_layers(backbone: nn.Module) -> list[str]:
    """Return the linear layers of a network, but for those whose weights an attention reads past them."""
    inside = tuple(f"{name}." for name, module in backbone.named_modules() if isinstance(module, nn.MultiheadAttention))
    linear = (name for name, module in backbone.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if not (inside and name.startswith(inside))]


class TunedModel(nn.Module):
    """An encoder that is trained, and a model of its features whose head is the whole's.

    Args:
        encoder: maps images to features.
        model: of features; has `features` and a linear `head`.
        recipe: what the encoder is made of, see `Source`.
    """

    def __init__(self, encoder: EncoderNetwork, model: nn.Module, recipe: dict[str, object]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head: nn.Module = model.head  # type: ignore[assignment]
        model.head = nn.Identity()
        self.model = model
        self.recipe = recipe

    def features(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` in 0 to 1 to what the head is given."""
        found: Tensor = self.model.features(self.encoder(x))  # type: ignore[operator]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits `[B, n_classes]`."""
        return self.head(self.features(x))


@torch.no_grad()
def width_of(encoder: EncoderNetwork, shape: tuple[int, ...]) -> int:
    """Return how many features an encoder has of images of a shape.

    Raises:
        UserError: it takes no such images.
    """
    try:
        return encoder(torch.zeros(1, *shape)).shape[1]
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:  # the network's own
        raise UserError(f"encoder.name: it fails on images of shape {list(shape)}: {first_line(error)}") from error
