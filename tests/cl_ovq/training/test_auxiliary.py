"""What mixers add to the loss reaches the gradient, once, and nothing of it stays behind."""

import copy

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.mixers import VQAttention, auxiliary_losses


class FirstStep(SupervisedPlugin):
    """Keeps model, batch, loss and gradients of the first training step."""

    def __init__(self):
        super().__init__()
        self.model = None

    def before_training_iteration(self, strategy, **kwargs):
        if self.model is None:
            self.model, self.batch = copy.deepcopy(strategy.model), [part.clone() for part in strategy.mbatch]

    def after_backward(self, strategy, **kwargs):
        if not hasattr(self, "loss"):
            self.loss = strategy.loss.detach().clone()
            self.gradients = {name: p.grad.clone() for name, p in strategy.model.named_parameters()}


def test_the_commitment_of_every_layer_is_part_of_the_loss_and_its_gradient(session):
    trained, first = (
        session("model.mixer=vq", "model.commitment=3", "strategy.name=naive", "model.codebook_size=6"),
        FirstStep(),
    )
    # A codebook that has started: the first step would put its codes at random keys.
    for layer in trained.model.modules():
        if isinstance(layer, VQAttention):
            layer.started.fill_(True)
    trained.learn(first)
    x, y, _ = first.batch
    with auxiliary_losses(first.model) as losses:
        loss = torch.nn.functional.cross_entropy(first.model(x), y)
    assert len(losses) == 2
    total = loss + sum(losses)
    assert sum(losses) > 0.1 * loss
    total.backward()
    assert first.loss == pytest.approx(total.item(), rel=1e-6)
    for name, parameter in first.model.named_parameters():
        torch.testing.assert_close(first.gradients[name], parameter.grad, msg=name)
    copy.deepcopy(trained.model)  # no layer holds on to a graph, which cannot be copied
