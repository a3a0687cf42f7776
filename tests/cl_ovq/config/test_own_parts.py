"""Parts that a user enters from a file of their own: found by name, with options, and refused where they do not fit."""

import json
import re
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch

from cl_ovq.cli.listing import options_of
from cl_ovq.comparison import load_group
from cl_ovq.config import from_stored, load_config, to_dict
from cl_ovq.config.identity import identity
from cl_ovq.config.keys import flatten
from cl_ovq.errors import UserError
from cl_ovq.in_context import build_learner
from cl_ovq.mixers import MIXERS, build_mixers
from cl_ovq.models import build_model
from cl_ovq.runs.contract import check_contract
from cl_ovq.runs.setup import load_stream
from cl_ovq.strategies import AUGMENTATIONS, SCHEDULES, STRATEGIES
from cl_ovq.training.memory_usage import method_bytes

STRATEGY = """
from dataclasses import dataclass
from avalanche.training.plugins import SupervisedPlugin
from cl_ovq.options import option
from cl_ovq.strategies import STRATEGIES

@dataclass
class ShrinkOptions:
    factor: float = option(0.5, "factor of all weights after an experience", minimum=0)

@STRATEGIES.enter("shrink", "fine-tuning that shrinks all weights after an experience", options=ShrinkOptions)
def build(options, context):
    class Shrink(SupervisedPlugin):
        STATE = ()

        def after_training_exp(self, strategy, **kwargs):
            for weight in strategy.model.parameters(): weight.data *= options.factor
    return context.naive(Shrink())
"""
MIXER = """
from dataclasses import dataclass
from torch import nn
from cl_ovq.mixers import MIXERS, Mixer, MixerOptions
from cl_ovq.options import option

@dataclass
class ScaleOptions(MixerOptions):
    scale: float = option(2.0, "factor of every feature")

@MIXERS.enter("scale", "scales features", options=ScaleOptions)
class Scale(Mixer):
    def forward(self, x, *, mask=None, state=None, return_state=False): return self.options.scale * x, None
"""


@pytest.fixture
def own(tmp_path):
    """Runs a file that enters parts, and takes them out again."""
    known = [(registry, dict(registry)) for registry in (STRATEGIES, MIXERS, SCHEDULES, AUGMENTATIONS)]

    def own(text):
        (tmp_path / "own.py").write_text(text)
        return runpy.run_path(str(tmp_path / "own.py"))

    yield own
    for registry, parts in known:
        registry._parts = parts
        type(registry).revision += 1


def test_a_schedule_and_an_augmentation(own, session):
    """Those of the documentation."""
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    own(block)
    overrides = ("strategy.name=naive", "model.name=mlp", "strategy.batch_size=150", "optimizer.learning_rate=0.1")
    trained = session(
        *overrides, "optimizer.schedule=root", "optimizer.delay=2", "training.augmentation=[erase]", "training.erased=1"
    )
    trained.strategy.train(trained.train[0], eval_streams=[])
    steps = len(range(0, len(trained.train[0].dataset), 150))
    assert trained.strategy.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 + (steps - 1) / 2) ** -0.5)
    x = trained.stream.samples.gather(torch.arange(40))
    (changed,) = (plugin.augment(x) for plugin in trained.strategy.plugins if hasattr(plugin, "augment"))
    assert 5 < int((changed != x).flatten(1).any(1).sum()) < 40


def test_a_strategy(own, session, tiny):
    own(STRATEGY)
    made = session("strategy.name=shrink", "strategy.factor=0", "model.name=mlp")
    made.strategy.train(made.train[0], eval_streams=[])
    assert not any(weight.any() for weight in made.model.parameters())
    assert options_of("strategies", "shrink")["strategy.factor"].startswith("factor of all weights")
    with pytest.raises(UserError, match=r"^strategy\.factor: 'naive' does not use it: strategies that do: shrink$"):
        tiny("strategy.name=naive", "strategy.factor=0")
    with pytest.raises(UserError, match=r"^strategy\.factor: -1 is too small"):
        tiny("strategy.name=shrink", "strategy.factor=-1")
    stored = to_dict(tiny("strategy.name=shrink", "strategy.factor=0.25"))
    assert stored["strategy"]["factor"] == 0.25
    assert identity(stored) != identity(to_dict(tiny("strategy.name=shrink")))


@pytest.mark.parametrize(
    ("kept", "found"),
    [("", None), ("kept_bytes = None", None), ("kept_bytes = 0", 0), ("kept_bytes = property(lambda self: 12.0)", 12)],
)
def test_the_bytes_of_a_strategy_that_does_not_say_are_unknown(own, session, kept, found):
    own(STRATEGY.replace("STATE = ()", f"STATE = ()\n        {kept}"))
    assert method_bytes(session("strategy.name=shrink", "model.name=mlp").strategy) == found


def test_the_bytes_of_plugins_of_avalanche(own, session):
    """Past samples are counted wherever they are; what else a plugin keeps is unknown."""
    text = STRATEGY.replace("STATE = ()", "STATE = ()\n        kept_bytes = 7")
    for plugin, found in ("ReplayPlugin(20)", 7), ("LwFPlugin()", None):
        more = f"from avalanche.training.plugins import LwFPlugin, ReplayPlugin\n{text}"
        own(more.replace("naive(", f"naive({plugin}, ").replace('"shrink"', f'"{plugin[:3]}"'))
        assert method_bytes(session(f"strategy.name={plugin[:3]}", "model.name=mlp").strategy) == found


def test_a_mixer_alone_and_in_a_pattern(own, tiny):
    own(MIXER)
    for chosen in ("model.mixer=scale", "model.pattern=[scale, ovq]"):
        config = tiny(chosen, "model.scale=3")
        layer = build_mixers(config.model, config.dictionary)[0]
        assert torch.equal(layer(torch.ones(1, 2, 16))[0], torch.full((1, 2, 16), 3.0))
    with pytest.raises(UserError, match=r"^model\.scale: 'ovq' does not use it: mixers that do: scale$"):
        tiny("model.scale=3")


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ("x.mean(1, keepdim=True), None", "[2, 1, 16]"),
        ("x[:, :-1], None", "[2, 3, 16]"),
        ("x[..., :1], None", "[2, 4, 1]"),
        ("x[0], None", "[4, 16]"),
        ("x", "a Tensor"),
        ("(3, None)", "a int"),
        ("(x, None, None)", "a tuple"),
    ],
)
def test_a_mixer_that_returns_another_sequence(own, tiny, returned, found):
    """Most of them would be added to the tokens by broadcasting, and train."""
    own(MIXER.replace("self.options.scale * x, None", returned))
    config = tiny("model.mixer=scale", "stream.experiences=2")
    stream = load_stream(config)
    line = f"model: mixer Scale maps tokens [2, 4, 16] to {found}; it must return (y, state) with y of shape [2, 4, 16]"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        build_model(config, stream, check=partial(check_contract, config=config, stream=stream))


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (
            "x[:, :1], None",
            "learner: mixer Scale maps tokens [1, 2, 16] to [1, 1, 16]; it must return",
        ),
        ("x, {}", "learner: mixer Scale: a mixer's state contains a dict"),
        ("x / nothing, None", "learner: a mixer does not take tokens: NameError: name 'nothing'"),
        (
            "x.mean(1, keepdim=True).expand_as(x), None",
            "learner: mixer Scale is not causal: the first 1 outputs depend on later tokens",
        ),
        ("x.cumsum(1), None", "learner: mixer Scale does not continue from its state"),
    ],
)
def test_a_mixer_that_a_learner_in_context_cannot_have(own, tiny, returned, line):
    own(MIXER.replace("self.options.scale * x, None", returned))
    config = tiny("strategy.name=in_context", "learner.mixer=scale", "learner.width=16", "learner.steps=1")
    with pytest.raises(UserError, match=f"^{re.escape(line)}"):
        build_learner(config.learner, config.dictionary, 0)


SUMS = """
    def forward(self, x, *, mask=None, state=None, return_state=False):
        total = x.cumsum(1) + (0 if state is None else state[:, None])
        return total, total[:, -1] if return_state else None
"""
LINE = "    def forward(self, x, *, mask=None, state=None, return_state=False): return self.options.scale * x, None"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("cumsum(1)", "flip(1)"), " is not causal: the first 8 outputs depend on later tokens"),
        (("cumsum(1)", "mean(1, keepdim=True).expand_as(x)"), " is not causal"),
        (("total[:, -1] if", "None if"), " does not continue from its state"),
        (("state[:, None])", "state['x'][:, None])"), ": a mixer's state contains a dict"),
        (("return total", "self.options = 3; return total"), "AttributeError: 'int' object has no attribute 'width'"),
        (("", ""), None),
    ],
)
def test_a_mixer_that_is_not_causal_or_forgets(own, change, line):
    """In a model of sequences, whose states evaluation.lengths carries on."""
    sums = SUMS.replace("total[:, -1] if", "{'x': total[:, -1]} if") if "['x']" in change[1] else SUMS
    own(MIXER.replace(LINE, sums.replace(*change) if change[0] else sums))
    sizes = ["stream.length=16", "stream.pairs=2", "stream.train=8", "stream.validation=8", "stream.test=8"]
    config = load_config(
        "paper/recall", ["model.mixer=scale", "model.parameters=null", "evaluation.lengths=[16]", *sizes]
    )
    stream = load_stream(config)
    check = partial(check_contract, config=config, stream=stream)
    if line is None:
        assert build_model(config, stream, check=check).state_bytes(16) == 2 * 32 * 4
        return
    place = "model: mixer Scale" if line.startswith((" ", ":")) else "model: SequenceModel does not take a batch .*: "
    with pytest.raises(UserError, match=f"^{place}{re.escape(line)}"):
        build_model(config, stream, check=check)


def test_a_mixer_that_passes_no_options_on_has_them(own, tiny):
    own(MIXER.replace("    def forward", "    def __init__(self, options): super().__init__()\n\n    def forward", 1))
    config = tiny("model.mixer=scale", "model.scale=3", "model.width=16")
    (layer, *_) = build_mixers(config.model)
    assert (layer(torch.ones(1, 1, 16))[0][0, 0, 0], layer.state_bytes(4)) == (3, 0)


def test_an_option_that_means_two_things_at_once(own, tiny):
    own(MIXER.replace("scale: float", "window: float").replace("options.scale", "options.window"))
    with pytest.raises(UserError, match=r"^model\.window: another part used with it has a different 'window'"):
        tiny("model.pattern=[scale, sliding_window]")


def test_stored_keys_that_were_not_used_are_passed_over():
    """As results of revisions hold them whose sections had all keys of all parts."""
    new = to_dict(load_config("quickstart", ["strategy.name=ewc", "model.name=mlp", "strategy.strength=100"]))
    old = new | {
        "strategy": new["strategy"] | {"strength": None, "alpha": 0.5, "patience": 2},
        "model": new["model"] | {"mixer": "ovq", "window": 64, "pattern": None},
        "dictionary": {"scope": "stream", "growth_rate": 0.125},
        "memory": {"capacity": 2000},
    }
    assert to_dict(from_stored(old)) == new
    assert identity(old) == identity(new)


def test_published_results_of_older_keys_are_those_of_today():
    folder = Path(__file__).parents[3] / "docs" / "results"
    for name in ("quickstart_stream", "quickstart_softmax"):
        stored = json.loads((folder / f"{name}.json").read_text())["runs"][0]["config"]
        assert "memory_size" in stored["strategy"]
        config = load_group(str(folder / f"{name}.json")).config
        assert config["strategy"]["buffer_size"] == 50
        assert flatten(config).items() <= flatten(to_dict(from_stored(stored))).items()
        assert ("dictionary" in config) == (name == "quickstart_stream")
