"""Parts from outside, each with one fault that an audit must find. Imported by path, as a user's file."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from cl_ovq.avalanche import Plugin
from cl_ovq.models import MODELS
from cl_ovq.strategies import STRATEGIES
from streams import STREAMS, StreamEntry, TensorSamples, build_stream, rows_of
from streams.options import InstalledSplitOptions

HIDDEN_BYTES = 4000
REPEATED = 7  # training samples that come again in the test stream

with Path(__file__).with_name("imported").open("a") as file:
    file.write("x")


class Network(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.head = nn.Linear(24, classes)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


class Crowd(Network):
    """Chooses what it adds by a majority over the batch, as L2P's published code chooses prompts."""

    def __init__(self, classes):
        super().__init__(classes)
        self.prompts = nn.Parameter(torch.randn(4, 24))

    def features(self, x):
        found = self.body(x)
        votes = (found @ self.prompts.T).argmax(1).bincount(minlength=4)
        return found + self.prompts[votes.argmax()]


class Hidden(Crowd):
    """The same, where a large constant hides all but two classes, as in heads that grow."""

    def forward(self, x):
        said = super().forward(x)
        return said if self.training else said - 1e4 * (torch.arange(said.shape[1]) >= 2)


class Drifting(Network):
    """A pretrained body without a gradient, whose batch norm goes on following the data, below a layer that learns."""

    def __init__(self, classes):
        super().__init__(classes)
        self.body = nn.Sequential(self.body.requires_grad_(False), nn.Linear(24, 24))


class Told(MultiTaskModule):
    """Adds what the task label asks for."""

    def __init__(self, classes):
        super().__init__()
        self.network = Network(classes)
        self.offsets = nn.Embedding(10, classes)

    def forward(self, x, task_labels=None):
        said = self.network(x)
        return said if task_labels is None else said + self.offsets(task_labels)


class Hoarder(Network):
    """Keeps the last samples that it saw in training, in an attribute that nobody asks for."""

    def features(self, x):
        if self.training:
            self.last = x.detach().clone()
        return self.body(x)


def enter(name, network):
    def build(options, context):
        torch.manual_seed(0)
        return network(context.stream.n_classes)

    MODELS.add(name, name, build=build, reads="images")


for network in (Network, Crowd, Hidden, Drifting, Told, Hoarder):
    enter(network.__name__.lower(), network)


@STRATEGIES.enter("smuggler", "mixes samples of past experiences into its batches")
class Smuggler(Plugin):
    def __init__(self, options):
        super().__init__(options)
        self.x, self.y, self.t = [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        new = [part.clone() for part in strategy.mbatch]
        if strategy.clock.train_exp_counter:
            old = (self.x, self.y, self.t)
            strategy.mbatch = [torch.cat([a, torch.cat(b)[:5]]) for a, b in zip(strategy.mbatch, old, strict=True)]
        else:
            for kept, part in zip((self.x, self.y, self.t), new, strict=True):
                kept.append(part)


@STRATEGIES.enter("cheat", "learns from the test samples of the experience")
def build_cheat(options, context):
    class Cheat(SupervisedPlugin):
        STATE = ()
        kept_bytes = 0

        def before_training_iteration(self, strategy, **kwargs):
            rows = rows_of(context.stream.benchmark.streams["test"][strategy.clock.train_exp_counter].dataset)[:3]
            samples = context.stream.samples
            more = (samples.gather(rows), samples.targets[rows], torch.zeros(3, dtype=torch.int64))
            strategy.mbatch = [torch.cat(parts) for parts in zip(strategy.mbatch, more, strict=True)]

    return context.naive(Cheat())


@STRATEGIES.enter("shrink", "shrinks all weights after an experience, frozen ones too")
class Shrink(Plugin):
    def after_training_exp(self, strategy, **kwargs):
        for weight in strategy.model.parameters():
            weight.data *= 0.9


@STRATEGIES.enter("oracle", "hides the classes of other test experiences")
class Oracle(Plugin):
    def after_eval_forward(self, strategy, **kwargs):
        hidden = torch.ones(strategy.mb_output.shape[1], dtype=torch.bool)
        hidden[list(strategy.experience.classes_in_this_experience)] = False
        strategy.mb_output = strategy.mb_output.masked_fill(hidden, -1e4)


@STRATEGIES.enter("unseeded", "adds noise of a generator that no seed decides")
class Unseeded(Plugin):
    def before_backward(self, strategy, **kwargs):
        strategy.loss = strategy.loss * float(np.random.default_rng().uniform(0.5, 1.5))


@STRATEGIES.enter("forgetful", "counts experiences in an attribute that no checkpoint keeps")
def build_forgetful(options, context):
    class Forgetful(SupervisedPlugin):
        STATE = ()
        kept_bytes = 0
        experiences = 0

        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss * (1 + self.experiences)

        def after_training_exp(self, strategy, **kwargs):
            self.experiences += 1

    return context.naive(Forgetful())


class Claims(SupervisedPlugin):
    STATE = ()

    def __init__(self, claimed, held):
        super().__init__()
        self.kept_bytes, self.held = claimed, held

    def after_training_exp(self, strategy, **kwargs):
        self.held.append(torch.rand(HIDDEN_BYTES // 4))
        del self.held[:-1]


@STRATEGIES.enter("modest", "holds more than it says, in a closure")
def build_modest(options, context):
    held = []
    plugin = Claims(0, [])

    def after_training_exp(strategy, **kwargs):
        held[:] = [torch.rand(HIDDEN_BYTES // 4)]

    plugin.after_training_exp = after_training_exp
    return context.naive(plugin)


@STRATEGIES.enter("boastful", "says that it holds more than it does")
def build_boastful(options, context):
    return context.naive(Claims(3 * HIDDEN_BYTES, []))


@STRATEGIES.enter("honest", "says what it holds")
def build_honest(options, context):
    return context.naive(Claims(HIDDEN_BYTES, []))


def build_leaky(options, *, seed):
    stream = build_stream("split_digits", options, seed=seed)
    parts = stream.benchmark.streams
    train, test = (rows_of(parts[name][0].dataset)[:REPEATED] for name in ("train", "test"))
    inputs = stream.samples.inputs.clone()
    inputs[test] = inputs[train]
    samples = TensorSamples(inputs, stream.samples.targets, divisor=stream.samples.divisor)
    return dataclasses.replace(stream, samples=samples)


@dataclasses.dataclass
class PlainOptions:
    experiences: int = dataclasses.field(default=2, metadata={"help": "experiences", "minimum": 1})


def build_ordered(options, *, seed):
    return build_stream("split_digits", InstalledSplitOptions(experiences=options.experiences), seed=0)


STREAMS["leaky"] = StreamEntry(build_leaky, InstalledSplitOptions, "test samples that repeat training samples")
STREAMS["ordered"] = StreamEntry(build_ordered, PlainOptions, "one order of classes, whatever the seed")
