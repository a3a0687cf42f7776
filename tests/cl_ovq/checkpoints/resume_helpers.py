"""What tests of resumed runs share: how they are cut short, and how what they left is compared."""

import signal
import time
from unittest.mock import patch

import torch
from forked import SECONDS, ForkedCommand
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


def killed_by_sigkill(parent, *arguments):
    """Kill a run at its first checkpoint; return its folder, and the arguments of the command that made it."""
    for attempt in range(5):  # on a busy machine it may have ended before this process has its turn
        folder = parent / str(attempt)
        command = (*arguments, f"output_dir={folder}")
        process = ForkedCommand("run", *command)
        deadline = time.monotonic() + SECONDS
        while not (folder / NAME).exists() and process.returncode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        if not (folder / "results.json").exists():
            break
    assert process.returncode == -signal.SIGKILL, process.stderr
    return folder, command


def leaves(tree, path=""):
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for name, part in items for key, leaf in leaves(part, f"{path}/{name}").items()}
    if isinstance(tree, torch.Tensor):  # NumPy knows no bf16
        return {path: tree.reshape(-1).view(torch.uint8).numpy().tobytes()}
    return {path: repr(tree)}


def final(folder):
    return leaves(read_checkpoint(folder / NAME)["state"])


def assert_same(result, whole, folder, expected):
    """Make sure that a result and the last checkpoint in its folder are those of a run that was never disturbed."""
    for part in PARTS:
        assert getattr(result, part) == getattr(whole, part), part
    found = final(folder)
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []
