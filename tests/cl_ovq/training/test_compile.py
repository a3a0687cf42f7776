"""Compiled passes: which they are, that they compute the same, and that the model itself stays as it is."""

import copy
from functools import partial

import pytest
import torch
from quick_settings import ANYWHERE, quick
from torch import nn

from cl_ovq.errors import UserError
from cl_ovq.models.heads import RememberingHead, unwrap
from cl_ovq.runs import training_checks
from cl_ovq.runs.checking import check_config
from cl_ovq.strategies import STRATEGIES

TRAINED = [name for name in ANYWHERE if not STRATEGIES[name].is_head]
COMPILE = ("training.compile=true", "evaluation.batch_size=100")
MLP = ("model.name=mlp", "model.width=8")
SGD = ("optimizer.name=sgd", "optimizer.learning_rate=0.05")
COMPILER = torch.compile


@pytest.fixture
def shapes(monkeypatch):
    """Sizes of batches that compiled passes are given, and whether they train; nothing is compiled."""
    seen = []

    def compiled(function, **options):
        assert options == {"dynamic": False}

        def watched(x):
            seen.append((len(x), torch.is_grad_enabled()))
            return function(x)

        return watched

    monkeypatch.setattr(torch, "compile", compiled)
    return seen


@pytest.fixture
def traced(monkeypatch):
    """Passes go through PyTorch's tracer, but no compiler: this takes no minutes."""
    monkeypatch.setattr(torch, "compile", partial(COMPILER, backend="eager"))


def weights_of(trained):
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def test_full_batches_of_training_and_of_evaluation_are_compiled(session, shapes):
    trained = session("strategy.name=naive", "strategy.batch_size=150", *MLP, *COMPILE)
    first, second = (len(experience.dataset) for experience in trained.train)
    trained.learn()
    assert shapes == [(150, True)] * (first // 150 + second // 150)
    assert first % 150
    shapes.clear()
    trained.strategy.eval(trained.test)
    assert shapes == [(100, False)] * sum(len(experience.dataset) // 100 for experience in trained.test)


@pytest.mark.parametrize("name", ["ewc", "lwf", "gem", "mir", "derpp"])
def test_passes_that_methods_make_are_not_compiled(session, shapes, name):
    trained = session(*quick(name, *MLP, *COMPILE))
    trained.learn()
    past = 15 if name in ("mir", "derpp") else 0  # that a step takes beside the new ones
    assert {size for size, _ in shapes} == {150, 150 + past}


@pytest.mark.parametrize("name", TRAINED)
def test_every_strategy_learns_the_same(session, traced, name):
    found = []
    for more in ((), COMPILE):
        trained = session(*quick(name, *MLP, *SGD, *more))
        trained.learn()
        trained.strategy.eval(trained.test)
        assert "forward" not in vars(unwrap(trained.model))
        found.append(weights_of(trained))
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-4, atol=1e-6)


KINDS = {
    "ovq": ("dictionary.scope=task", "training.accumulation=2"),
    "vq": ("model.mixer=vq", "training.precision=bf16"),
    "tasks": ("model.pattern=[softmax, gated_delta]", "stream.scenario=task_incremental"),
    "resnet32": ("model.name=resnet32",),
    "memory": ("model.head=memory", *MLP),
}
SLOW = ("vq", "tasks", "resnet32")


@pytest.mark.parametrize(
    "overrides", [pytest.param(KINDS[name], marks=[pytest.mark.slow] * (name in SLOW), id=name) for name in KINDS]
)
def test_every_kind_of_model_learns_the_same(session, traced, overrides):
    found = []
    for more in ((), COMPILE):
        trained = session("strategy.name=naive", "strategy.batch_size=150", *SGD, *overrides, *more)
        trained.learn()
        trained.strategy.eval(trained.test)
        found.append(weights_of(trained))
    assert found[0].keys() == found[1].keys()
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-3, atol=1e-5)


def test_a_head_that_grows_is_compiled_anew(session, traced):
    trained = session("strategy.name=naive", "strategy.batch_size=150", *MLP, *COMPILE)
    trained.strategy.train(trained.train[0], eval_streams=[])
    sizes = []
    trained.model.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    before = trained.model.head
    trained.model.head = nn.Linear(8, 14)
    trained.model.head.weight.data[:10] = before.weight.data
    trained.strategy.train(trained.train[1], eval_streams=[])
    assert set(sizes) == {14}
    assert not torch.equal(trained.model.head.weight[:10], before.weight)


def test_a_memory_is_not_compiled(session, shapes):
    trained = session("strategy.name=naive", "strategy.batch_size=150", "model.head=memory", *MLP, *COMPILE)
    (head,) = (module for module in trained.model.modules() if isinstance(module, RememberingHead))
    trained.learn()
    assert shapes
    assert head.memory.tokens == sum(len(experience.dataset) for experience in trained.train)
    assert "features" not in vars(trained.model)
    copied = copy.deepcopy(trained.model).eval()
    x = trained.stream.samples.gather(torch.arange(5))
    assert torch.equal(copied(x), trained.model.eval()(x))


def test_what_cannot_be_compiled_is_said_in_a_line(session, monkeypatch):
    def compiled(function, **options):
        def failing(x):
            raise torch._dynamo.exc.Unsupported("no such thing\nand more")

        return failing

    monkeypatch.setattr(torch, "compile", compiled)
    trained = session("strategy.name=naive", *MLP, *COMPILE)
    with pytest.raises(UserError) as caught:
        trained.learn()
    assert str(caught.value) == "training.compile: the model cannot be compiled: no such thing: remove it"
    assert "forward" not in vars(trained.model)


def test_without_a_compiler_it_is_refused(tiny, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(training_checks.shutil, "which", lambda name: None)
    with pytest.raises(UserError) as caught:
        check_config(tiny("training.compile=true", "device=cpu"))
    line = r"training.compile: needs a C++ compiler, and there is no g++: install one, or remove it"
    assert str(caught.value).replace("clang++", "g++") == line
    check_config(tiny("device=cpu"))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(UserError, match="CXX names '/nowhere/c\\+\\+', which is not there"):
        check_config(tiny("training.compile=true", "device=cpu"))


def test_what_would_do_nothing_is_refused(tiny):
    with pytest.raises(UserError, match=r"^training.compile: has no effect: strategy.name=slda learns without grad"):
        check_config(tiny("training.compile=true", "strategy.name=slda"))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), MLP, ("model.name=resnet32",)], ids=["ovq", "mlp", "resnet32"])
def test_compiled_code_computes_the_same(session, overrides):
    found = []
    for more in ((), COMPILE):
        trained = session("strategy.name=naive", "strategy.batch_size=150", *SGD, *overrides, *more)
        trained.learn()
        trained.strategy.eval(trained.test)
        found.append(weights_of(trained))
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-2, atol=1e-4)
