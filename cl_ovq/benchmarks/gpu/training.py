"""The platform's models trained through PyTorch alone: with the kernels, and beside them with the PyTorch path."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cl_ovq.benchmarks.gpu.parts import Item, Settings
from cl_ovq.mixers import Mixer, dictionaries
from cl_ovq.mixers.ovq import OVQAttention
from cl_ovq.models.classifier import PatchTransformer
from cl_ovq.models.sequence import SequenceModel
from kernels import DictionaryOptions

STEPS = 50


def _layers(implementation: str, *, capacity: int, chunk: int, persistent: bool) -> list[Mixer]:
    options = DictionaryOptions(capacity=capacity, chunk_size=chunk)
    return [
        OVQAttention(
            width=64,
            heads=4,
            options=options,
            persistent=persistent,
            dictionary_weight=16.0 if persistent else None,
            implementation=implementation,
        )
        for _ in range(2)
    ]


def _classifier(device: str, implementation: str) -> nn.Module:
    """The quickstart's model: digits in patches, one dictionary a layer that outlives its batch."""
    torch.manual_seed(0)
    mixers = _layers(implementation, capacity=256, chunk=16, persistent=True)
    model = PatchTransformer(image_shape=(1, 8, 8), n_classes=10, patch_size=2, width=64, mixers=mixers)
    return model.to(device)


def _sequence_model(device: str, implementation: str) -> nn.Module:
    """A model of sequences that are many chunks long."""
    torch.manual_seed(0)
    mixers = _layers(implementation, capacity=64, chunk=32, persistent=False)
    return SequenceModel(tokens=None, features=16, outputs=64, width=64, mixers=mixers, hidden=128).to(device)


MODELS: dict[str, Callable[[str, str], nn.Module]] = {"quickstart": _classifier, "sequence_model": _sequence_model}


def batch(name: str, device: str, *, tiny: bool = False) -> tuple[Tensor, Tensor]:
    """Noisy images of ten kinds and their kinds, or sequences of 64 vectors that repeat and what comes next."""
    rows, period = (2, 10) if tiny else (16, 64)
    generator = torch.Generator().manual_seed(1)
    if name == "quickstart":
        kinds = torch.randn(10, 1, 8, 8, generator=generator)
        y = torch.arange(rows) % 10
        x = kinds[y] + 0.1 * torch.randn(rows, 1, 8, 8, generator=generator)
        return x.to(device), y.to(device)
    tokens = torch.randint(64, (rows // 2, period), generator=generator).repeat(1, 4)  # [B, T]
    vectors = torch.randn(64, 16, generator=generator)
    return vectors[tokens].to(device), tokens.roll(-1, 1).to(device)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One pass and its gradients; the dictionaries write what they read once those are taken."""
    found = dictionaries(model).values()
    with ExitStack() as stack:
        for dictionary in found:
            stack.enter_context(dictionary.recording())
        loss = cross_entropy(model(x).flatten(0, -2), y.flatten())
    loss.backward()
    for dictionary in found:
        dictionary.write()
    return loss.detach()


def train(name: str, device: str, implementation: str, *, tiny: bool) -> tuple[list[float], float]:
    """Losses, and seconds a step after the first five."""
    steps = 2 if tiny else STEPS
    model = MODELS[name](device, implementation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = batch(name, device, tiny=tiny)
    losses, begun = [], time.perf_counter()
    for number in range(steps):
        if number == min(5, steps - 1):
            begun = time.perf_counter()
        optimizer.zero_grad()
        losses.append(step(model, x, y))
        optimizer.step()
    found = torch.stack(losses).tolist()  # waits for the GPU
    return found, (time.perf_counter() - begun) / max(1, steps - 5)


def compared(name: str, settings: Settings) -> dict[str, Any]:
    """A model trained with the kernels and, from the same weights and batch, with the PyTorch path on the CPU."""
    losses, seconds = train(name, settings.device, "triton", tiny=settings.rehearsal)
    expected, _ = train(name, "cpu", "chunked", tiny=settings.rehearsal)
    return {
        "losses": [losses[0], losses[-1]],
        "expected": [expected[0], expected[-1]],
        "seconds_a_step": seconds,
        # Rounding differs from the first step on, and training multiplies it.
        "right": abs(losses[0] - expected[0]) < 1e-3 and losses[-1] < losses[0],
    }


def items(settings: Settings) -> list[Item]:
    """Every model."""
    return [Item(name, partial(compared, name, settings)) for name in MODELS]
