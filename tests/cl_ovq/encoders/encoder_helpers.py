"""A small encoder of a user's own, in a file, and what is computed with it by hand."""

from unittest.mock import patch

import torch
from torch import nn

from cl_ovq.runs.checkpoints.plugin import Checkpoints

NETS = '''"""Networks of a user's own."""

from pathlib import Path

from torch import nn


class Small(nn.Module):
    """Two convolutions and dropout, which must not be heard of in evaluation mode."""

    def __init__(self):
        super().__init__()
        if Path(__file__).with_name("poison").exists():
            raise RuntimeError("the encoder was touched")
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Conv2d(6, 12, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        return self.drop(self.second(self.first(x)).relu())


def number():
    return 3
'''


def write_nets(folder):
    """Write the module, and weights of it that are nobody's default; return both paths."""
    code, weights = folder / "nets.py", folder / "small.pth"
    code.write_text(NETS)
    names = {"__file__": str(code)}
    exec(NETS, names)
    torch.manual_seed(7)
    network = names["Small"]()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.first[1].running_mean.normal_(std=0.1)
    network.first[1].running_var.fill_(0.01)
    torch.save(network.state_dict(), weights)
    return code, weights


def by_hand(weights, images):
    """The features that the network has of images `[B, 1, H, W]`, from the formula and the tensors alone."""
    w = torch.load(weights, weights_only=True)
    x = nn.functional.conv2d(images, w["first.0.weight"], w["first.0.bias"], padding=1)
    mean, var = w["first.1.running_mean"], w["first.1.running_var"]
    x = nn.functional.batch_norm(x, mean, var, w["first.1.weight"], w["first.1.bias"], training=False).relu()
    return nn.functional.conv2d(x, w["second.weight"], w["second.bias"], stride=2).relu().mean((2, 3))


class Killed(Exception):
    pass


def killed_at_the_first_checkpoint():
    """Raise once a checkpoint is written."""
    own = Checkpoints.save

    def save(self, *args, **kwargs):
        own(self, *args, **kwargs)
        raise Killed

    return patch.object(Checkpoints, "save", save)
