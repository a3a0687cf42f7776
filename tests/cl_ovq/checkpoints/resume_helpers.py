"""What tests of resumed runs share: how they are cut short, and how what they left is compared."""

from unittest.mock import patch

import torch
from quick_settings import QUICK

from cl_ovq.runs.checkpoints import NAME, read_checkpoint
from cl_ovq.runs.checkpoints.plugin import Checkpoints

FAST = (*QUICK, "model.dropout=0.1")
MEMORY = ("model.name=mlp", "model.head=memory", "memory.capacity=60", "strategy.name=naive")
PARTS = ("matrix", "matrices", "metrics", "dictionary", "anytime")


class Killed(Exception):
    pass


def killed_at(step):
    """Raise at the end of a training step, as late as can be."""
    own = Checkpoints.after_training_iteration

    def after_training_iteration(self, strategy, **kwargs):
        own(self, strategy, **kwargs)
        if strategy.clock.train_iterations == step:
            raise Killed

    return patch.object(Checkpoints, "after_training_iteration", after_training_iteration)


def leaves(tree, path=""):
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for name, part in items for key, leaf in leaves(part, f"{path}/{name}").items()}
    if isinstance(tree, torch.Tensor):  # NumPy knows no bf16
        return {path: tree.reshape(-1).view(torch.uint8).numpy().tobytes()}
    return {path: repr(tree)}


def final(folder):
    return leaves(read_checkpoint(folder / NAME)["state"])
