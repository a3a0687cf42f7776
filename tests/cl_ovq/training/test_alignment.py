"""SLCA: an encoder that learns slowly, Gaussians of features, and a head that is trained on what is drawn from them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cl_ovq.models.heads import unwrap
from cl_ovq.runs.checkpoints import NAME, read_checkpoint
from cl_ovq.strategies.alignment import SLCAOptions
from cl_ovq.sweeps.pbt_checkpoint import set_configuration
from cl_ovq.training.alignment import DECAY, MOMENTUM, ClassifierAlignment, factor

SLCA = ("strategy.name=slca", "model.name=mlp", "strategy.align_samples=20")


def alignment(width, **options):
    samples = SimpleNamespace(gather=lambda rows: torch.zeros(len(rows), width))
    model = nn.Linear(width, 4)
    model.features = nn.Identity()
    return ClassifierAlignment(SLCAOptions(**options), model, SimpleNamespace(samples=samples), seed=0)


@pytest.fixture
def correlated():
    torch.manual_seed(5)
    return torch.randn(400, 5) @ torch.randn(5, 5) + 10 * torch.randn(5)


def test_statistics_are_those_of_all_samples_of_a_class(correlated):
    plugin = alignment(5)
    plugin.add(3, correlated[:150])
    plugin.add(1, torch.randn(20, 5))
    plugin.add(3, correlated[150:])
    assert plugin.classes.tolist() == [3, 1]
    assert plugin.counts.tolist() == [400, 20]
    assert np.allclose(plugin.means[0], correlated.numpy().mean(0), atol=1e-4)
    wanted = np.cov(correlated.numpy().astype(float), rowvar=False, bias=True)
    assert np.allclose(plugin.covariances[0], wanted, rtol=1e-4, atol=1e-4)


def test_what_is_drawn_has_mean_and_covariance_of_its_class(correlated):
    plugin = alignment(5, align_samples=100_000)
    plugin.add(7, correlated)
    plugin.add(2, torch.randn(50, 5) * 0.1)
    factors = [factor(covariance) for covariance in plugin.covariances]
    drawn, targets = plugin.draw(factors, torch.Generator().manual_seed(1))
    assert targets.bincount().tolist() == [100_000, 100_000]
    assert set(targets[:50].tolist()) == {0, 1}  # in random order
    of_seven = drawn[targets == 0].double().numpy()
    mean, covariance = plugin.means[0].numpy(), plugin.covariances[0].numpy()
    scale = np.sqrt(np.diagonal(covariance))
    assert np.abs((of_seven.mean(0) - mean) / scale).max() < 0.02  # six standard errors
    assert np.abs((np.cov(of_seven, rowvar=False) - covariance) / np.outer(scale, scale)).max() < 0.03
    again, _ = plugin.draw(factors, torch.Generator().manual_seed(1))
    assert torch.equal(again, drawn)


def test_a_class_of_one_sample_is_drawn_as_it_is():
    plugin = alignment(5, align_samples=3)
    sample = torch.randn(1, 5)
    plugin.add(0, sample)
    drawn, _ = plugin.draw([factor(plugin.covariances[0])], torch.Generator().manual_seed(0))
    assert torch.allclose(drawn, sample.expand(3, 5), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, None])
def test_the_head_is_trained_on_what_is_drawn(correlated, temperature):
    """Against gradient descent with momentum that is written out, on the paper's loss."""
    options = {"align_samples": 8, "align_epochs": 2, "align_temperature": temperature, "align_learning_rate": 0.05}
    plugin = alignment(5, **options)
    plugin.add(2, correlated / 10)
    plugin.add(0, torch.randn(30, 5))
    torch.manual_seed(0)
    head = nn.Linear(5, 4)
    weights = [weight.detach().clone() for weight in head.parameters()]
    before = [weight.clone() for weight in weights]
    plugin.align(head, torch.Generator().manual_seed(9))

    generator, speeds = torch.Generator().manual_seed(9), None
    factors = [factor(covariance) for covariance in plugin.covariances]
    for rate in (0.05, 0.025):  # a cosine over two epochs
        features, targets = plugin.draw(factors, generator)
        for batch in (slice(0, 8), slice(8, 16)):
            weight, bias = (part.clone().requires_grad_() for part in weights)
            logits = (features[batch] @ weight.T + bias)[:, [2, 0]]
            if temperature is not None:
                logits = logits / logits.square().sum(1, keepdim=True).sqrt() / temperature
            shares = logits.exp() / logits.exp().sum(1, keepdim=True)
            loss = -shares[torch.arange(8), targets[batch]].log().mean()
            steps = torch.autograd.grad(loss, (weight, bias))
            steps = [step + DECAY * part.detach() for step, part in zip(steps, weights, strict=True)]
            speeds = steps if speeds is None else [MOMENTUM * v + g for v, g in zip(speeds, steps, strict=True)]
            weights = [part - rate * speed for part, speed in zip(weights, speeds, strict=True)]
    for found, wanted, first in zip(head.parameters(), weights, before, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
        assert not torch.allclose(found, first, atol=1e-2)


@pytest.mark.parametrize("more", [(), ("optimizer.schedule=cosine",), ("optimizer.weight_decay=0.5",)])
def test_the_encoder_makes_shorter_steps(session, more):
    def moved(share):
        plain = ("optimizer.name=sgd", "strategy.batch_size=2000", "strategy.epochs=1", *more)
        trained = session(*SLCA, *plain, "strategy.align_epochs=0", f"strategy.encoder_rate={share}")
        before = {name: weight.detach().clone() for name, weight in unwrap(trained.model).named_parameters()}
        trained.strategy.train(trained.train[0], eval_streams=[])
        return {name: weight.detach() - before[name] for name, weight in unwrap(trained.model).named_parameters()}

    whole, slow = moved(1.0), moved(0.25)
    for name, step in whole.items():
        if name == "head.bias":
            continue  # which is set as well
        wanted = step if name.startswith("head") else 0.25 * step
        assert torch.allclose(slow[name], wanted, atol=1e-7), name
    assert any(step.abs().max() > 1e-4 for name, step in whole.items() if not name.startswith("head"))


def test_norms_and_biases_need_not_decay(session):
    trained = session(*SLCA, "optimizer.weight_decay=0.1", "optimizer.decay_norm_and_bias=false")
    groups = trained.strategy.optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (pytest.approx(rate), decay) for rate in (1e-2, 1e-4) for decay in (0.1, 0.0)
    ]


def test_bytes_of_the_statistics_are_counted(run):
    width = 32
    result = run(*SLCA, f"model.width={width}")
    assert result.provenance["method_bytes"] == 10 * (8 + 8 + 4 * width + 4 * width**2)


def test_the_first_experience_is_not_aligned(session):
    heads = []
    for epochs in (0, 3):
        trained = session(*SLCA, f"strategy.align_epochs={epochs}")
        for data in trained.train:
            trained.strategy.train(data, eval_streams=[])
            heads.append(unwrap(trained.model).head.weight.detach().clone())
    assert torch.equal(heads[0], heads[2])
    assert not torch.allclose(heads[1], heads[3], atol=1e-4)


def test_alignment_weighs_old_classes_again(run):
    options = ("strategy.epochs=5", "optimizer.learning_rate=1e-2", "strategy.align_samples=100")
    without = run(*SLCA[:2], *options, "strategy.align_epochs=0")
    aligned = run(*SLCA[:2], *options)
    assert aligned.metrics["accuracy"] > without.metrics["accuracy"]


def test_population_based_training_keeps_the_encoder_slow(run, tiny):
    result = run(*SLCA)
    file = Path(result.output_dir, NAME)
    set_configuration(file, tiny(*SLCA, "optimizer.weight_decay=0.2", "optimizer.learning_rate=0.5"))
    groups = read_checkpoint(file)["state"]["optimizer"]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.2), (pytest.approx(0.005), 0.2)]
