"""The memory head in real strategies: what is written, when, and what it gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_ovq.errors import UserError
from cl_ovq.models.heads import RememberingHead
from cl_ovq.models.memory import MemoryHead
from cl_ovq.runs.run import run_experiment
from cl_ovq.training.memory import first_of_each

PIXELS = ("model.name=pixels", "model.head=memory", "memory.capacity=100")


def memory_of(model) -> MemoryHead:
    (head,) = (module for module in model.modules() if isinstance(module, RememberingHead))
    return head.memory


@pytest.mark.parametrize("strategy", ["naive", "replay", "cumulative", "joint"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_every_training_sample_is_written_exactly_once(session, strategy, epochs):
    trained = session(*PIXELS, f"strategy.name={strategy}", f"strategy.epochs={epochs}")
    trained.learn()
    memory = memory_of(trained.model)
    targets = torch.cat([torch.tensor(e.dataset.targets[:]) for e in trained.train])
    assert memory.tokens == len(targets)
    fill = int(memory.pending)
    pending = memory.pending_targets[:fill].bincount(minlength=10)
    assert torch.equal(memory.slots.counts.sum(1) + pending, targets.bincount(minlength=10))


def test_one_pass_makes_the_memory_that_observing_the_samples_in_order_makes(session):
    trained = session(*PIXELS, "strategy.name=naive")
    seen = []
    observe = MemoryHead.observe
    memory = memory_of(trained.model)
    memory.observe = lambda x, y: (seen.append((x, y)), observe(memory, x, y))
    trained.learn()
    fresh = memory_of(session(*PIXELS, "strategy.name=naive").model)
    fresh.observe(torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen]))
    x = trained.stream.samples.inputs[:50].flatten(1) / trained.stream.samples.divisor
    torch.testing.assert_close(memory(x), fresh(x))


def test_evaluation_writes_nothing(session):
    trained = session(*PIXELS, "strategy.name=naive")
    trained.learn()
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    trained.strategy.eval(trained.test)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.model.state_dict().items())


def test_pixels_learn_digits_without_gradients(run):
    result = run(*PIXELS, "strategy.name=naive", "stream.experiences=5")
    assert 0.95 < result.metrics["accuracy"] < 0.995
    assert 0 <= result.metrics["forgetting"] < 0.05
    assert result.dictionary["scope"] == "shared"
    assert 10 < result.dictionary["size"] <= result.dictionary["capacity"] == 100
    assert result.dictionary["tokens"] == result.provenance["data"]["sizes"]["train"]
    assert result.run_name == "pixels-memory naive seed 0"


def test_beside_a_linear_head_the_encoder_learns_and_the_memory_answers(session):
    trained = session("model.head=memory", "model.name=mlp", "strategy.name=naive")
    before = {name: p.clone() for name, p in trained.model.named_parameters()}
    trained.learn()
    assert all(not torch.equal(before[name], p) for name, p in trained.model.named_parameters())
    x = trained.stream.samples.gather(torch.arange(5))
    trained.model.eval()
    with torch.no_grad():
        expected = memory_of(trained.model)(trained.model.features(x))
        assert torch.equal(trained.model(x), expected)


@pytest.mark.parametrize("name", ["random_features", "random_convolution", "patch_transformer"])
@pytest.mark.parametrize("scenario", ["class_incremental", "domain_incremental", "task_incremental"])
def test_every_kind_of_features_in_every_scenario(run, name, scenario):
    model = (f"model.name={name}", "model.head=memory")
    mixer = ("model.mixer=softmax",) if name == "patch_transformer" else ()
    result = run(*model, *mixer, f"stream.scenario={scenario}", "strategy.name=naive")
    assert result.metrics["accuracy"] > (0.15 if name == "patch_transformer" else 0.7)  # an encoder in one epoch drifts


def test_calibration_takes_validation_data_of_the_experiences_so_far(session):
    trained = session(*PIXELS, "strategy.name=naive", "memory.calibrate=true")
    memory, given = memory_of(trained.model), []
    calibrate = MemoryHead.calibrate
    memory.calibrate = lambda x, y: (given.append(y), calibrate(memory, x, y))
    before = memory.settings
    trained.learn()
    sizes = [len(e.dataset) for e in trained.stream.benchmark.streams["validation"]]
    assert [len(y) for y in given] == [sizes[0], sum(sizes)]
    assert memory.settings != before


def test_mistakes(tiny, console):
    with pytest.raises(UserError, match=r"memory\.capacity: 5 is too small"):
        run_experiment(tiny(*PIXELS, "memory.capacity=5"), console)
    with pytest.raises(UserError, match=r"memory\.calibrate: needs a validation stream"):
        run_experiment(tiny(*PIXELS, "memory.calibrate=true", "stream.validation_fraction=0"), console)


@pytest.fixture
def console():
    import io

    from rich.console import Console

    return Console(file=io.StringIO())


@given(rows=st.lists(st.integers(0, 5), max_size=12))
def test_first_of_each(rows):
    expected = [row not in rows[:i] for i, row in enumerate(rows)]
    assert first_of_each(torch.tensor(rows, dtype=torch.int64)).tolist() == expected
