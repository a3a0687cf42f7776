"""Changes the images of training batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from streams import Samples


class Augmentation(SupervisedPlugin):
    """Changes the images of a step's batch before its pass: new and replayed samples alike, each anew.

    Random numbers come from a generator of its own: how a run trains otherwise (order of batches, replay, dropout) is
    the same with and without augmentation. Methods that make passes of their own over past samples ask for `augmented`
    where their sources do.

    Args:
        transforms: map images `[B, C, H, W]` to images, in turn; they draw from PyTorch's global generator.
        seed: of their random numbers.
    """

    STATE = ("generator",)  # of a checkpoint

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]], seed: int) -> None:
        super().__init__()
        self.transforms = transforms
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def generator(self) -> Tensor:
        """State of the random numbers."""
        return self._generator.get_state()

    @generator.setter
    def generator(self, state: Tensor) -> None:
        self._generator.set_state(state)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Change the batch, which strategies have put together by now."""
        strategy.mbatch[0] = self.augment(strategy.mbatch[0])

    @torch.no_grad()
    def augment(self, images: Tensor) -> Tensor:
        """Return images `[B, C, H, W]`, changed."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator)
        try:
            for transform in self.transforms:
                images = transform(images)
            self.generator = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)
        return images


def augmented(strategy: Any, images: Tensor) -> Tensor:
    """Return images of past samples as a training step would see them; as they are where there is no augmentation."""
    for plugin in strategy.plugins:
        if isinstance(plugin, Augmentation):
            return plugin.augment(images)
    return images


def is_augmented(strategy: Any) -> bool:
    """Return whether a strategy's batches are augmented."""
    return any(isinstance(plugin, Augmentation) for plugin in strategy.plugins)


def plain_inputs(strategy: Any, samples: Samples) -> Tensor:
    """Return the inputs of a step's batch as they were before augmentation.

    Args:
        strategy: in the step.
        samples: the stream's samples.
    """
    if not is_augmented(strategy):
        inputs: Tensor = strategy.mb_x
        return inputs
    return samples.gather(strategy.dataloader.rows).to(strategy.device)
