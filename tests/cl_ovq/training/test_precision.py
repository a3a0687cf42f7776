"""Passes that compute with fewer bits: which do, what they come near to, and what stays in fp32."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from quick_settings import ANYWHERE, quick
from torch import nn

from cl_ovq.errors import UserError
from cl_ovq.mixers import MIXERS, dictionaries
from cl_ovq.mixers.vq import VQAttention
from cl_ovq.models.heads import RememberingHead
from cl_ovq.runs import training_checks
from cl_ovq.runs.checking import check_config
from cl_ovq.strategies import STRATEGIES
from cl_ovq.training.steps import ScaledSteps

TRAINED = [name for name in ANYWHERE if not STRATEGIES[name].is_head]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MLP = ("model.name=mlp", "model.width=8")
SGD = ("optimizer.name=sgd", "optimizer.learning_rate=0.05")


class Passes(SupervisedPlugin):
    """Notes in which types linear layers compute: in a strategy's own passes, and in others."""

    def __init__(self):
        super().__init__()
        self.own, self.others = set(), set()
        self._inside = False

    def note(self, layer, inputs, output):
        if isinstance(layer, nn.Linear):
            (self.own if self._inside else self.others).add(output.dtype)

    def before_forward(self, strategy, **kwargs):
        self._inside = True

    def after_forward(self, strategy, **kwargs):
        self._inside = False
        assert strategy.mb_output.dtype == torch.float32

    def before_backward(self, strategy, **kwargs):
        assert strategy.loss.dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TRAINED)
def test_every_strategy_learns_with_fewer_bits(session, name, precision):
    """Its own pass has them, and no other: importances, reference gradients, teachers, logits, evaluation."""
    trained = session(*quick(name, f"training.precision={precision}"))
    passes = Passes()
    watching = nn.modules.module.register_module_forward_hook(passes.note)
    try:
        trained.learn(last=[passes])
        trained.strategy.eval(trained.test)
    finally:
        watching.remove()
    assert passes.own == {TYPES[precision]}
    assert passes.others == {torch.float32}
    for tensor in trained.model.state_dict().values():
        assert tensor.dtype not in TYPES.values()
        assert tensor.isfinite().all()
    assert all(int(one.writes) > 0 for one in dictionaries(trained.model).values())


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_comes_near_to_fp32(session, mixer, precision):
    trained = session("strategy.name=naive", f"model.mixer={mixer}", "model.pattern=null", *SGD)
    x = trained.stream.samples.gather(torch.arange(64))
    for _ in range(2):  # a codebook begins at tokens of the first pass
        exact = trained.model(x)
    with torch.autocast("cpu", dtype=TYPES[precision]):
        found = trained.model(x)
    assert found.dtype == TYPES[precision]
    assert (found.float() - exact).norm() < (0.05 if precision == "bf16" else 0.01) * exact.norm()


@pytest.mark.parametrize("mixer", ["linear", "gated_delta", "mamba2", "gated_slot"])
def test_sums_over_tokens_are_of_fp32(session, mixer):
    """The state after many tokens: what comes from rounding each of them does not grow with their number."""
    trained = session("strategy.name=naive", f"model.mixer={mixer}", "model.pattern=null")
    layer = trained.model.blocks[0].mixer.eval()
    torch.manual_seed(0)
    x = torch.randn(2, 600, 16).bfloat16().float()
    _, exact = layer(x, return_state=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, narrow = layer(x, return_state=True)
    assert all(part.dtype == torch.float32 for part in narrow.memory)
    for part, other in zip(narrow.memory, exact.memory, strict=True):
        assert (part - other).norm() < 0.01 * other.norm()


def test_a_codebook_counts_every_token_under_autocast():
    layer = VQAttention(width=8, heads=1, codebook_size=2, chunk_size=64)
    x = torch.randn(3, 333, 8)
    layer(x)
    layer.decay = 0.0
    layer.usage.fill_(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    assert layer.usage.sum() == 999


def test_fewer_bits_change_the_weights_a_little(session):
    found = {}
    for precision in ("fp32", *TYPES):
        trained = session("strategy.name=naive", *MLP, *SGD, f"training.precision={precision}")
        before = {name: weight.clone() for name, weight in trained.model.named_parameters()}
        trained.learn()
        found[precision] = torch.cat([(w - before[name]).flatten() for name, w in trained.model.named_parameters()])
    way = found["fp32"].norm()
    assert 0 < (found["bf16"] - found["fp32"]).norm() < 0.03 * way
    assert 0 < (found["fp16"] - found["fp32"]).norm() < 0.005 * way


class Overflow(SupervisedPlugin):
    """Lets the gradient of some steps overflow; notes the scale before each, and whether weights stayed."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.count, self.stayed, self.scales = set(steps), 0, [], []

    def _weights(self, strategy):
        return torch.cat([weight.detach().flatten() for weight in strategy.model.parameters()])

    def before_backward(self, strategy, **kwargs):
        (scaled,) = (plugin for plugin in strategy.plugins if isinstance(plugin, ScaledSteps))
        self.scales.append(scaled.scale)
        if self.count in self.steps:
            strategy.loss = strategy.loss + 1e37 * strategy.model.head.weight.square().sum()
        self.before = self._weights(strategy)

    def after_update(self, strategy, **kwargs):
        self.stayed.append(torch.equal(self.before, self._weights(strategy)))
        self.count += 1


@pytest.mark.parametrize("name", ["naive", "ewc", "si", "gem", "agem"])
def test_a_step_that_overflows_changes_nothing_and_halves_the_scale(session, name):
    trained = session(*quick(name, "training.precision=fp16", *MLP, *SGD))
    watch = Overflow([1, 2, 9])
    trained.learn(last=[watch])
    assert [number for number, stayed in enumerate(watch.stayed) if stayed] == [1, 2, 9]
    scales = dict(enumerate(watch.scales))
    assert scales[0] == scales[1] == 2 * scales[2] == 4 * scales[3] == 4 * scales[9] == 8 * scales[10]
    for plugin in trained.strategy.plugins:
        for kept in ("importance", "anchor", "path"):
            assert all(part.isfinite().all() for part in getattr(plugin, kept, {}).values())


def test_gradients_that_fp16_cannot_hold_are_not_lost(session):
    """A loss of a ten-millionth: its gradients would all be zero in fp16, were they not scaled."""

    class Small(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss * 1e-7

    moved = []
    for precision in ("fp32", "fp16"):
        trained = session(
            "strategy.name=naive", *MLP, SGD[0], "optimizer.learning_rate=1e5", f"training.precision={precision}"
        )
        before = trained.model.head.weight.detach().clone()
        trained.learn(Small())
        moved.append(trained.model.head.weight.detach() - before)
    assert (moved[1] - moved[0]).norm() < 0.02 * moved[0].norm()


@pytest.mark.parametrize("when", ["always", "first_experience"])
def test_a_memory_is_written_in_fp32(session, when):
    trained = session(
        "strategy.name=naive", "model.head=memory", f"model.train_encoder={when}", *MLP, "training.precision=bf16"
    )
    written, expected = [], []
    (head,) = (module for module in trained.model.modules() if isinstance(module, RememberingHead))
    observe = head.memory.observe
    head.memory.observe = lambda features, targets: written.append(features) or observe(features, targets)

    class Watch(SupervisedPlugin):
        @torch.no_grad()
        def before_forward(self, strategy, **kwargs):
            expected.append(trained.model.features(strategy.mb_x))

    trained.learn(last=[Watch()])
    assert len(written) > 10
    for found, wanted in zip(written, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy.name=knn"], "training.precision: has no effect: strategy.name=knn learns without gradients"),
        (["training.precision=fp8"], "training.precision: unknown choice 'fp8': "),
    ],
)
def test_what_would_do_nothing_is_refused(tiny, overrides, line):
    with pytest.raises(UserError) as caught:
        check_config(tiny("training.precision=bf16", *overrides))
    assert str(caught.value).startswith(line)


def test_a_precision_that_the_device_does_not_have_is_refused(tiny, monkeypatch):
    check_config(tiny("training.precision=fp16"))

    def missing(*arguments):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'\nmore")

    monkeypatch.setattr(training_checks.functional, "conv2d", missing)
    with pytest.raises(UserError) as caught:
        check_config(tiny("training.precision=fp16"))
    line = "training.precision: fp16 does not work on cpu: \"slow_conv2d_cpu\" not implemented for 'Half': use fp32"
    assert str(caught.value) == line


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="scale"):
        ScaledSteps(torch.device("cpu")).scale = scale
