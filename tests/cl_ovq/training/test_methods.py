"""What single methods compute, against other formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick_settings import fitting
from scipy.optimize import minimize
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from torch import nn
from torch.nn import functional

from cl_ovq.models.discriminant import NearestMean, StreamingDiscriminant
from cl_ovq.training.passes import gradient, trained
from cl_ovq.training.penalties import ElasticWeights, SynapticIntelligence
from cl_ovq.training.projection import nearest_multipliers
from cl_ovq.training.replay import Memory, MemoryBatch

MLP = ("model.name=mlp", "model.width=12", "model.depth=1")
FEW = "strategy.importance_samples=60"


def test_fisher_information_of_a_linear_model(session):
    """For logits `W x + b` it is `p (1 - p)` per class for b, and `x^2 p (1 - p)` for W, in the mean over samples."""
    trained_ = session("strategy.name=ewc", "model.name=pixels", "strategy.importance_samples=2000")
    strategy, experience = trained_.strategy, trained_.train[0]
    strategy.experience = experience
    (ewc,) = (plugin for plugin in strategy.plugins if isinstance(plugin, ElasticWeights))
    torch.manual_seed(0)
    ewc.after_training_exp(strategy)
    x = torch.stack([experience.dataset[i][0] for i in range(len(experience.dataset))]).flatten(1)
    p = trained_.model(x.view(-1, 1, 8, 8)).softmax(1).detach()
    variance = p * (1 - p)
    expected = {"head.bias": variance.mean(0), "head.weight": (variance.mT @ x.square()) / len(x)}
    for name, value in expected.items():
        assert (ewc.importance[name] - value).norm() < 0.15 * value.norm(), name


@pytest.mark.parametrize("name", ["ewc", "online_ewc"])
def test_one_quadratic_is_the_sum_over_experiences(session, name):
    """The gradient of the penalty is that of `lambda / 2 sum_e F_e (w - w_e)^2`, each F_e and w_e kept apart."""
    run = session(*fitting(name, (*MLP, FEW, "stream.experiences=4", "strategy.importance_decay=0.5")))
    (ewc,) = (plugin for plugin in run.strategy.plugins if isinstance(plugin, ElasticWeights))
    terms, mean = [], ewc.mean

    def remember(*args):
        found = mean(*args)
        terms.append((found, {key: w.detach().clone() for key, w in trained(run.model).items()}))
        return found

    ewc.mean = remember
    run.learn()
    assert len(terms) == 4
    weights = trained(run.model)
    for weight in weights.values():
        weight.data += 0.1 * torch.randn_like(weight)
    if name == "ewc":
        penalty = sum((f[k] * (w - e[k]).square()).sum() for f, e in terms for k, w in weights.items())
    else:
        fisher = {k: sum(0.5 ** (3 - i) * f[k] for i, (f, _) in enumerate(terms)) for k in weights}
        penalty = sum((fisher[k] * (w - terms[-1][1][k]).square()).sum() for k, w in weights.items())
    expected = gradient(run.model, 100 / 2 * penalty)
    for weight in weights.values():
        weight.grad = None
    run.strategy.loss = torch.zeros(())
    ewc.after_backward(run.strategy)
    for key, weight in weights.items():
        torch.testing.assert_close(weight.grad, expected[key], rtol=1e-3, atol=1e-4)


def test_paths_of_si_add_up_to_what_the_loss_lost(session):
    """Over small steps the sum of `-g dw` is the fall of the loss (Zenke et al., section 3)."""
    model = nn.Linear(3, 1)
    si = SynapticIntelligence(1.0, 0.1)
    strategy = type("Strategy", (), {"model": model, "device": "cpu", "loss": torch.zeros(())})()
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    si.before_training_exp(strategy)
    for _ in range(400):
        optimizer.zero_grad()
        strategy.loss = functional.mse_loss(model(x), y)
        losses.append(float(strategy.loss.detach()))
        strategy.loss.backward()
        si.after_backward(strategy)
        optimizer.step()
        si.after_update(strategy)
    fall = losses[0] - float(functional.mse_loss(model(x), y).detach())
    assert fall > 0.03
    assert sum(float(path.sum()) for path in si.path.values()) == pytest.approx(fall, rel=0.02)


@given(seed=st.integers(0, 10**6), past=st.integers(1, 6), margin=st.sampled_from([0.0, 0.5]))
def test_gems_problem_is_solved(seed, past, margin):
    random = np.random.default_rng(seed)
    references, found = random.normal(size=(past, 9)), random.normal(size=9)
    matrix = references @ references.T + 1e-3 * np.eye(past)
    linear = references @ found

    def value(v):
        return v @ matrix @ v / 2 + linear @ v

    v = nearest_multipliers(references, found, margin)
    assert (v >= margin).all()
    other = minimize(
        value, np.full(past, margin + 0.1), jac=lambda v: matrix @ v + linear, bounds=[(margin, None)] * past
    )
    assert value(v) <= other.fun + 1e-6 * max(1, abs(other.fun))
    if margin == 0:  # no past experience objects any more, but for what keeps the matrix regular
        assert (references @ (found + v @ references) > -1e-2 * (1 + v.max())).all()


def test_agem_leaves_nothing_that_points_against_the_past(session):
    run = session("strategy.name=agem", *MLP, "strategy.epochs=2")
    (agem,) = (plugin for plugin in run.strategy.plugins if hasattr(plugin, "references"))
    project, dots = agem.project, []

    def watch(found, references):
        changed = project(found, references)
        dots.append((float(references[0] @ found), float(references[0] @ changed), float(references[0].norm() ** 2)))
        return changed

    agem.project = watch
    run.learn()
    assert len(dots) > 3
    assert all(before < 0 and abs(after) < 1e-4 * scale for before, after, scale in dots)


@given(size=st.integers(1, 12), counts=st.lists(st.integers(1, 15), min_size=1, max_size=12))
def test_a_memory_gives_each_sample_once_before_any_comes_again(size, counts):
    memory = Memory.__new__(Memory)
    memory.rows = memory.tasks = torch.arange(size)
    memory.order = memory.rows[:0]
    memory.at = lambda positions, device: positions.tolist()
    drawn = []
    for count in counts:
        batch = memory.draw(count, torch.device("cpu"))
        assert len(set(batch)) == len(batch) == min(count, size)
        drawn += batch
    times = [drawn.count(position) for position in range(size)]
    assert max(times) - min(times) <= 1 or sum(times) % size


def test_der_keeps_the_logits_at_the_end_of_each_experience(session):
    run = session("strategy.name=der", *MLP, "stream.experiences=3")
    expected = {}
    for part in run.parts():
        run.strategy.train(part, eval_streams=[])
        memory = run.strategy.memory
        run.model.eval()
        for row, logits in zip(memory.rows.tolist(), run.strategy.logits, strict=True):
            if row not in expected:
                expected[row] = run.model(run.stream.samples.gather(torch.tensor([row])))[0].detach()
            torch.testing.assert_close(logits, expected[row])
    assert len(memory) == 20


def test_er_ace_leaves_absent_classes_alone(session):
    run = session("strategy.name=er_ace", *MLP)
    new = torch.randn(4, 10, requires_grad=True)
    old = torch.zeros(1, 10)
    batch = MemoryBatch(None, torch.tensor([9]), None, None, None)
    run.strategy.objective(new, torch.tensor([0, 3, 3, 0]), old, batch).backward()
    assert (new.grad.abs().sum(0) > 0).tolist() == [c in (0, 3) for c in range(10)]


def test_er_ace_tells_the_classes_that_it_is_learning_from_old_ones(run, session):
    """Its memory holds the experience that is being learned; otherwise the last one would never be predicted."""
    from avalanche.training.plugins import SupervisedPlugin

    held = []

    class Look(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            held.append(set(seen.stream.samples.targets[strategy.memory.rows].tolist()))

    seen = session("strategy.name=er_ace", *MLP, "strategy.buffer_size=40")
    seen.learn(Look())
    first, second = (set(classes) for classes in seen.stream.classes_per_experience)
    assert held == [first, first | second]
    result = run("strategy.name=er_ace", *MLP, "strategy.buffer_size=100", "strategy.epochs=4")
    assert result.matrix[2][1] > 0.5


def test_mir_takes_the_samples_that_a_step_harms_most(session):
    run = session("strategy.name=mir", *MLP, "strategy.candidates=20", "strategy.buffer_batch_size=5")
    strategy = run.strategy
    strategy.train(run.train[0], eval_streams=[])
    rows = torch.arange(30)
    strategy.mbatch = [run.stream.samples.gather(rows), run.stream.samples.targets[rows], torch.zeros(30).long()]
    chosen = strategy.choose().positions
    every = strategy.memory.at(torch.arange(20), torch.device("cpu"))
    losses = []
    rate = strategy.optimizer.param_groups[0]["lr"]
    losses.append(functional.cross_entropy(run.model(every.x), every.y, reduction="none"))
    run.model.zero_grad()
    functional.cross_entropy(run.model(strategy.mb_x), strategy.mb_y).backward()
    with torch.no_grad():
        for weight in run.model.parameters():
            weight -= rate * weight.grad
    losses.append(functional.cross_entropy(run.model(every.x), every.y, reduction="none"))
    assert set(chosen.tolist()) == set((losses[1] - losses[0]).topk(5).indices.tolist())


def test_gdumb_starts_every_experience_from_the_first_weights(session):
    from avalanche.training.plugins import SupervisedPlugin

    seen = []

    class Start(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            seen.append(([p.detach().clone() for p in strategy.model.parameters()], dict(strategy.optimizer.state)))

    run = session("strategy.name=gdumb", *MLP, "stream.experiences=3")
    model = run.model
    run.learn(Start())
    assert run.strategy.model is model
    first, *others = seen
    assert len(others) == 2
    for weights, optimizer in others:
        assert not optimizer
        assert all(torch.equal(a, b) for a, b in zip(weights, first[0], strict=True))
    assert not torch.equal(next(iter(model.parameters())), first[0][0])


def samples(seed=0, classes=4, features=6, count=200):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    means = 2 * torch.randn(classes, features, generator=generator)
    y = torch.randint(classes, (count,), generator=generator)
    return means[y] + torch.randn(count, features, generator=generator) @ mixing, y


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_slda_is_linear_discriminant_analysis(batch):
    x, y = samples()
    head = StreamingDiscriminant(features=6, classes=5, shrinkage=0.01)
    for part in torch.arange(200).split(batch):
        head.observe(x[part], y[part])
    a, means = x.double().numpy(), np.stack([x[y == c].double().mean(0).numpy() for c in range(4)])
    away = a - means[y.numpy()]
    inverse = np.linalg.inv(0.99 * away.T @ away / 200 + 0.01 * np.eye(6))
    scores = a @ inverse @ means.T - np.einsum("cf,fg,cg->c", means, inverse, means) / 2
    found = head(x).double().numpy()
    assert (found.argmax(1) == scores.argmax(1)).all()
    expected = scores - scores.max(1, keepdims=True)
    likely = expected > -8
    np.testing.assert_allclose(found[:, :4][likely], expected[likely], atol=2e-3)
    assert (found[:, 4] < -14).all()  # a class never seen


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_ncm_is_the_nearest_centroid(batch):
    x, y = samples()
    head = NearestMean(features=6, classes=5)
    for part in torch.arange(200).split(batch):
        head.observe(x[part], y[part])
    expected = NearestCentroid().fit(x.numpy(), y.numpy()).predict(x.numpy())
    assert (head(x).argmax(1).numpy() == expected).all()


def test_ncm_by_cosine_is_the_mean_at_the_smallest_angle():
    x, y = samples()
    x = x + 1  # not around zero, from which angles are
    head = NearestMean(features=6, classes=5, distance="cosine")
    for part in torch.arange(200).split(7):
        head.observe(x[part], y[part])
    means = np.stack([x[y == label].numpy().mean(0) for label in range(4)])
    expected = cosine_similarity(x.numpy(), means).argmax(1)
    assert (head(x).argmax(1).numpy() == expected).all()
    assert (expected != NearestCentroid().fit(x.numpy(), y.numpy()).predict(x.numpy())).any()
