"""Strategies on sequences, whose targets are one a token: that all of them train, and what each computes there."""

import math

import numpy as np
import pytest
import torch
from quick_settings import fitting
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

from cl_ovq.errors import UserError
from cl_ovq.evaluation.matrix import MatrixRecorder
from cl_ovq.mixers import dictionaries
from cl_ovq.runs.checking import check_config
from cl_ovq.strategies import STRATEGIES
from cl_ovq.training.criteria import has_target
from cl_ovq.training.memory_usage import replay_bytes, replay_samples
from cl_ovq.training.passes import gradient, trained
from streams import rows_of

MODEL = ("model.name=sequence_model", "model.width=8", "model.depth=1", "model.convolution=2")
SIZES = ("stream.train=24", "stream.validation=6", "stream.test=8", "strategy.batch_size=8")
STREAMS = {
    "recall": (
        *("stream.name=recall", "stream.length=16", "stream.pairs=2", "stream.keys=12", "stream.values=12"),
        *MODEL,
        *SIZES,
    ),
    "regression": ("stream.name=regression", "stream.examples=3", "stream.questions=2", *MODEL, *SIZES),
}
QUICK = (
    "strategy.importance_samples=10",
    "strategy.candidates=8",
    "strategy.buffer_batch_size=4",
    "strategy.epochs=2",
)
PENALTIES = ("l2", "ewc", "online_ewc", "si", "mas")

on_sequences = pytest.mark.parametrize("name", STRATEGIES.having(lambda strategy: not strategy.needs_classes))
both_streams = pytest.mark.parametrize("stream", STREAMS)


def on(stream, name, *overrides):
    """Return the overrides that choose a stream and a strategy, with the others that the strategy has a key for."""
    return fitting(name, ("strategy.buffer_size=10", *STREAMS[stream], *overrides))


def plugin_of(run, attribute):
    (plugin,) = (plugin for plugin in run.strategy.plugins if hasattr(plugin, attribute))
    return plugin


def state_of(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@on_sequences
@both_streams
@pytest.mark.parametrize("scope", ["sequence", "stream"])
def test_it_trains_and_two_runs_are_the_same_run(session, name, stream, scope):
    found = []
    for _ in range(2):
        kind = {"recall": "tokens", "regression": "values"}[stream]
        matrix = MatrixRecorder([(0,), (1,)], kind)
        run = session(*on(stream, name, *QUICK), f"dictionary.scope={scope}", metrics=[matrix])
        before = state_of(run.model)
        run.learn()
        run.strategy.eval(run.test)
        assert all(np.isfinite(values[0]).all() for values in matrix.result().values())
        assert all(tensor.isfinite().all() for tensor in run.model.state_dict().values())
        assert state_of(run.model)["head.weight"] != before["head.weight"]
        assert replay_samples(run.strategy) == (10 if STRATEGIES[name].keeps_samples else 0)
        for dictionary in dictionaries(run.model).values():
            assert dictionary.writes == run.strategy.clock.train_iterations
        found.append((state_of(run.model), {key: value.tobytes() for key, value in matrix.result().items()}))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", STRATEGIES.having(lambda strategy: strategy.needs_classes))
def test_what_needs_classes_is_refused(tiny, name):
    with pytest.raises(UserError, match=f"'{name}' needs class labels, but 'recall' has sequences: known: naive"):
        check_config(tiny(f"strategy.name={name}", *STREAMS["recall"]))


def features(run, rows):
    """What the head is given at the tokens that have a target: a list of `[n, C]`, one a sample."""
    samples, seen = run.stream.samples, []
    with torch.no_grad():
        hook = run.model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for row in rows.tolist():
            run.model(samples.gather(torch.tensor([row])))
        hook.remove()
    return [found[0][has_target(samples.targets[row])] for found, row in zip(seen, rows.tolist(), strict=True)]


@both_streams
def test_fisher_information_of_the_head_by_its_formula(session, stream):
    """Per target: `p (1 - p) h^2` for logits `W h`, and `2 h^2` for a value, whose Gaussian has variance 1/2."""
    run = session(*on(stream, "ewc", "stream.train=600", "strategy.importance_samples=600"))
    run.strategy.experience = run.train[0]
    ewc = plugin_of(run, "importance")
    torch.manual_seed(0)
    ewc.after_training_exp(run.strategy)
    weight = run.model.head.weight.detach()
    expected = torch.zeros_like(weight)
    rows = rows_of(run.train[0].dataset)
    for h in features(run, rows):
        p = (h @ weight.T).softmax(-1)
        variance = p * (1 - p) if stream == "recall" else torch.full((len(h), 1), 2.0)
        expected += variance.T @ h.square() / len(h) / len(rows)
    found = ewc.importance["head.weight"]
    assert (found.sum(0) - expected.sum(0)).norm() < 0.1 * expected.sum(0).norm()
    assert (found - expected).norm() < 0.3 * expected.norm()  # each of 32 tokens is drawn some 40 times


@both_streams
def test_importance_of_the_head_in_mas_by_its_formula(session, stream):
    run = session(*on(stream, "mas", "strategy.importance_samples=100"))
    run.strategy.experience = run.train[0]
    mas = plugin_of(run, "importance")
    mas.after_training_exp(run.strategy)
    weight = run.model.head.weight.detach()
    parts = [2 * (weight @ h.T @ h).abs() / len(h) for h in features(run, rows_of(run.train[0].dataset))]
    torch.testing.assert_close(mas.importance["head.weight"], sum(parts) / len(parts), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", PENALTIES)
@both_streams
def test_a_penalty_pulls_back_by_the_gradient_of_its_formula(session, name, stream):
    run = session(*on(stream, name, *QUICK))
    run.learn()
    plugin = plugin_of(run, "importance")
    weights = trained(run.model)
    assert plugin.importance.keys() == weights.keys()
    assert all((part >= 0).all() for part in plugin.importance.values())
    assert sum(float(part.sum()) for part in plugin.importance.values()) > 0
    for weight in weights.values():
        weight.data += 0.1 * torch.randn_like(weight)
    penalty = sum((plugin.importance[key] * (w - plugin.anchor[key]).square()).sum() for key, w in weights.items())
    expected = gradient(run.model, plugin.strength * penalty)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)  # of the task
    run.strategy.loss = torch.tensor(3.0)
    plugin.after_backward(run.strategy)
    for key, weight in weights.items():
        torch.testing.assert_close(weight.grad, 1 + expected[key])
    torch.testing.assert_close(run.strategy.loss, 3 + plugin.strength * penalty.detach())


@both_streams
def test_the_teacher_of_lwf_is_kept_at_every_target(session, stream):
    run = session(*on(stream, "lwf", "strategy.strength=0.7", "strategy.temperature=3"))
    run.strategy.train(run.train[0], eval_streams=[])
    lwf, strategy, samples = plugin_of(run, "teacher"), run.strategy, run.stream.samples
    with torch.no_grad():
        for weight in run.model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    rows = rows_of(run.train[1].dataset)[:6]
    x, y = samples.gather(rows), samples.targets[rows]
    strategy.mbatch, strategy.mb_output = [x, y, torch.zeros(6).long()], run.model(x)
    strategy.loss = torch.tensor(0.0)
    lwf.before_backward(strategy)
    taught, distances = lwf.teacher(x), []
    for b, t in has_target(y).nonzero().tolist():
        if stream == "regression":
            distances.append((strategy.mb_output[b, t] - taught[b, t]).square())
        else:
            old, new = (Categorical(logits=output[b, t] / 3) for output in (taught, strategy.mb_output))
            distances.append(9 * kl_divergence(old, new))
    torch.testing.assert_close(strategy.loss, 0.7 * sum(distances) / len(distances))
    assert strategy.loss > 0


@both_streams
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_der_keeps_outputs_where_there_are_targets(session, stream, beta):
    name = "derpp" if beta else "der"
    run = session(*on(stream, name, "strategy.alpha=0.3", f"strategy.beta={beta}"))
    strategy = run.strategy
    strategy.train(run.train[0], eval_streams=[])
    memory = strategy.memory
    run.model.eval()
    with torch.no_grad():
        expected = run.model(run.stream.samples.gather(memory.rows))
    torch.testing.assert_close(strategy.logits, expected)
    old = memory.at(torch.tensor([1, 4, 2]), torch.device("cpu"))
    rows = rows_of(run.train[1].dataset)[:5]
    targets = run.stream.samples.targets[rows]
    new, again = torch.randn(5, *expected.shape[1:]), torch.randn(3, *expected.shape[1:])

    def loss(outputs, targets):
        criterion = functional.mse_loss if stream == "regression" else functional.cross_entropy
        return criterion(outputs[has_target(targets)], targets[has_target(targets)])

    squares = [(again[b, t] - strategy.logits[old.positions[b], t]).square() for b, t in has_target(old.y).nonzero()]
    wanted = loss(new, targets) + 0.3 * torch.stack(squares).mean() + beta * loss(again, old.y)
    torch.testing.assert_close(strategy.objective(new, targets, again, old), wanted)


@both_streams
def test_mir_takes_the_sequences_that_a_step_harms_most(session, stream):
    run = session(*on(stream, "mir", "strategy.candidates=10", "strategy.buffer_batch_size=3"))
    strategy, samples = run.strategy, run.stream.samples
    strategy.train(run.train[0], eval_streams=[])
    rows = rows_of(run.train[1].dataset)
    strategy.mbatch = [samples.gather(rows), samples.targets[rows], torch.zeros(len(rows)).long()]
    chosen = strategy.choose().positions
    kept = strategy.memory.at(torch.arange(10), torch.device("cpu"))

    def losses():
        criterion = strategy._criterion
        return torch.stack([criterion(run.model(x[None]), y[None]) for x, y in zip(kept.x, kept.y, strict=True)])

    before, rate = losses(), strategy.optimizer.param_groups[0]["lr"]
    run.model.zero_grad()
    strategy._criterion(run.model(strategy.mb_x), strategy.mb_y).backward()
    with torch.no_grad():
        for weight in run.model.parameters():
            weight -= rate * weight.grad
        assert set(chosen.tolist()) == set((losses() - before).topk(3).indices.tolist())


@both_streams
@pytest.mark.parametrize("name", ["gem", "agem"])
def test_no_step_raises_the_loss_on_past_sequences(session, stream, name):
    run = session(*on(stream, name, "strategy.buffer_batch_size=10", "strategy.epochs=3"))
    plugin, dots = plugin_of(run, "references"), []
    project = plugin.project

    @torch.enable_grad()
    def watch(found, references):
        (reference,) = references
        past = plugin.memory.at(torch.arange(10), torch.device("cpu"))
        loss = run.strategy._criterion(run.model(past.x), past.y)
        expected = torch.cat([part.flatten() for part in gradient(run.model, loss).values()])
        torch.testing.assert_close(reference, expected, rtol=1e-3, atol=1e-5)
        changed = project(found, references)
        dots.append((float(reference @ found), float(reference @ changed), float(reference.norm() ** 2)))
        return changed

    plugin.project = watch
    run.learn()
    assert all(before < 0 and after > -1e-2 * scale for before, after, scale in dots)


@pytest.mark.parametrize("policy", ["class_balanced", "experience_balanced", "reservoir"])
@pytest.mark.parametrize("name", ["replay", "derpp"])
def test_memory_policies(session, name, policy):
    """Sequences have no classes: `class_balanced` keeps as many of every experience."""
    run = session(*on("recall", name, f"strategy.buffer_policy={policy}", "stream.train=60"))
    run.learn()
    memory = run.strategy.memory if name == "derpp" else plugin_of(run, "storage_policy")
    rows = rows_of(memory.storage_policy.buffer)
    counts = [int(torch.isin(rows, rows_of(part.dataset)).sum()) for part in run.train]
    assert sum(counts) == len(rows.unique()) == 10
    assert counts == [5, 5] or policy == "reservoir"


@both_streams
def test_a_memory_in_bytes_pays_for_the_outputs_too(session, stream):
    tokens, outputs, sample = {"recall": (16, 32, 16 * (4 + 8)), "regression": (8, 1, 8 * (8 + 1) * 4)}[stream]
    size = sample + 4 * tokens * outputs
    run = session(*on(stream, "der", f"strategy.buffer_bytes={4 * size + size - 1}"))
    run.learn()
    assert replay_samples(run.strategy) == 4
    assert replay_bytes(run.strategy, run.stream.samples) == 4 * size


@both_streams
def test_early_stopping_looks_at_the_validation_loss(session, stream):
    run = session(*on(stream, "early_stopping"))
    run.strategy.experience = run.train[1]
    rows = rows_of(list(run.stream.benchmark.streams["validation"])[1].dataset)
    samples = run.stream.samples
    run.model.eval()
    with torch.no_grad():
        expected = run.strategy._criterion(run.model(samples.gather(rows)), samples.targets[rows])
    found = plugin_of(run, "patience").validation_loss(run.strategy)
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert math.isfinite(found)
