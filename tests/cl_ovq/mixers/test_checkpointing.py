"""Activation checkpointing makes a forward pass twice: nothing that the pass learns or records may show it."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cl_ovq.errors import UserError
from cl_ovq.mixers import OVQAttention, VQAttention, writing
from kernels import DictionaryOptions

WIDTH = 8


def step(layer, x, run, *, within):
    """One training step; the backward pass, which makes the forward pass again, is within `recording()` or after it."""
    x = x.clone().requires_grad_()
    with layer.dictionary.recording():
        loss = run(x).square().sum()
        if within:
            loss.backward()
    if not within:
        loss.backward()
    layer.dictionary.write()
    return x.grad


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("implementation", ["chunked", "triton"])
def test_a_layer_learns_and_writes_as_without_it(implementation, use_reentrant, within):
    torch.manual_seed(0)
    device = "cuda" if implementation == "triton" and torch.cuda.is_available() else "cpu"
    options = DictionaryOptions(capacity=4, chunk_size=4)
    plain = OVQAttention(
        width=WIDTH, heads=1, options=options, persistent=True, dictionary_weight=2.0, implementation=implementation
    ).to(device)
    again = copy.deepcopy(plain)
    for x in torch.randn(2, 2, 4, WIDTH).to(device):  # at the second step the dictionary is not empty
        expected = step(plain, x, lambda x: plain(x)[0], within=within)
        grad = step(
            again, x, lambda x: checkpoint(lambda x: again(x)[0], x, use_reentrant=use_reentrant), within=within
        )
        assert torch.equal(grad, expected)
    for actual, parameter in zip(again.parameters(), plain.parameters(), strict=True):
        assert torch.equal(actual.grad, parameter.grad)
    for name, buffer in plain.dictionary.state_dict().items():
        assert torch.equal(again.dictionary.state_dict()[name], buffer), name
    assert plain.dictionary.writes == 2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_backward_pass_after_the_write_is_refused(use_reentrant):
    """The pass would be made again from the dictionary as it was written since, and the gradient be another one."""
    torch.manual_seed(0)
    options = DictionaryOptions(capacity=4, chunk_size=4)
    layer = OVQAttention(width=WIDTH, heads=1, options=options, persistent=True, dictionary_weight=2.0)
    x = torch.randn(2, 4, WIDTH, requires_grad=True)
    with writing(layer):
        loss = checkpoint(lambda x: layer(x)[0], x, use_reentrant=use_reentrant).square().sum()
    with pytest.raises(UserError, match=r"call backward\(\) within `writing\(model\)`"):
        loss.backward()
    checkpoint(lambda x: layer(x)[0], x, use_reentrant=use_reentrant).square().sum().backward()
    assert layer.dictionary.writes == 1


def test_a_dictionary_of_the_sequence_does_not_mind():
    torch.manual_seed(0)
    layer = OVQAttention(width=WIDTH, heads=2, options=DictionaryOptions(capacity=4, chunk_size=4))
    x = torch.randn(2, 9, WIDTH, requires_grad=True)
    gradients = [
        torch.autograd.grad(run(x).square().sum(), [x, *layer.parameters()])
        for run in (lambda x: layer(x)[0], lambda x: checkpoint(layer, x, use_reentrant=False)[0])
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_codebook_that_learns_in_the_pass_is_refused(use_reentrant):
    """The pass would be made again with other codes, and the codebook would move twice."""
    torch.manual_seed(0)
    layer = VQAttention(width=WIDTH, heads=2, codebook_size=4)
    x = torch.randn(2, 9, WIDTH, requires_grad=True)
    loss = checkpoint(lambda x: layer(x)[0], x, use_reentrant=use_reentrant).square().sum()
    with pytest.raises(UserError, match="exclude the layer from checkpointing"):
        loss.backward()
    layer.eval()
    checkpoint(lambda x: layer(x)[0], x, use_reentrant=use_reentrant).square().sum().backward()
    assert x.grad.any()
