"""What autograd may ask beyond first derivatives in reverse mode, and what activation checkpointing does to a pass."""

from dataclasses import replace

import pytest
import torch
from kernel_helpers import IMPLEMENTATIONS, ON_GPU, dtype_of, empty_state, random_inputs
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from kernels import DictionaryOptions, update

OPTIONS = DictionaryOptions(capacity=4, chunk_size=4)
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]


def attention_of_keys(implementation):
    """Outputs as a function of the keys, and some keys."""
    inputs = random_inputs(t=6, h=1, dtype=dtype_of(implementation))

    def outputs(k):
        return replace(inputs, k=k).run(OPTIONS, implementation)[0]

    return outputs, inputs.k


def loss_of(outputs):
    return lambda k: outputs(k).square().sum()


def tangent_of(outputs, k):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(outputs(forward_ad.make_dual(k, torch.ones_like(k)))).tangent


def tangent_of_a_gradient(outputs, k):
    """The gradient is linear in that of the outputs, whose tangent it would drop."""
    k = k.clone().requires_grad_()
    o = outputs(k)
    with forward_ad.dual_level():
        return torch.autograd.grad(o, k, forward_ad.make_dual(torch.ones_like(o), torch.ones_like(o)))


TRANSFORMS = {
    "jvp": lambda f, k: torch.func.jvp(f, (k,), (torch.ones_like(k),)),
    "forward_ad": tangent_of,
    "forward_ad of a gradient": tangent_of_a_gradient,
    "forward_ad beside reverse mode": lambda f, k: tangent_of(f, k.clone().requires_grad_()),
    "grad": lambda f, k: torch.func.grad(loss_of(f))(k),
    "jvp of grad": lambda f, k: torch.func.jvp(torch.func.grad(loss_of(f)), (k,), (torch.ones_like(k),)),
    "grad of jvp": lambda f, k: torch.func.grad(lambda k: torch.func.jvp(f, (k,), (k,))[1].sum())(k),
    "vmap": lambda f, k: torch.func.vmap(f)(torch.stack([k, 2 * k])),
    "vmap of grad": lambda f, k: torch.func.vmap(torch.func.grad(loss_of(f)))(torch.stack([k, 2 * k])),
    "hessian": lambda f, k: torch.func.hessian(loss_of(f))(k),
    "hvp": lambda f, k: torch.autograd.functional.hvp(loss_of(f), k, torch.ones_like(k)),
    "compiled": lambda f, k: torch.func.jvp(torch.compile(f, backend="eager"), (k,), (torch.ones_like(k),)),
}


@pytest.mark.filterwarnings("ignore:Dynamo does not know")
@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_what_the_fast_paths_cannot_differentiate_is_refused_in_one_line(transform, implementation):
    outputs, k = attention_of_keys(implementation)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*'reference' has") as error:
        transform(outputs, k)
    assert "\n" not in str(error.value)


def test_the_reference_has_forward_mode_and_torch_func():
    """Against finite differences, and reverse mode."""
    outputs, k = attention_of_keys("reference")
    direction = torch.randn(k.shape, generator=torch.Generator().manual_seed(1), dtype=k.dtype)
    step = 1e-6
    expected = (outputs(k + step * direction) - outputs(k - step * direction)) / (2 * step)
    torch.testing.assert_close(torch.func.jvp(outputs, (k,), (direction,))[1], expected, atol=1e-7, rtol=1e-6)
    leaf = k.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(outputs)(leaf), leaf, create_graph=True)
    torch.testing.assert_close(torch.func.grad(loss_of(outputs))(k), gradient.detach())
    _, curvature = torch.func.jvp(torch.func.grad(loss_of(outputs)), (k,), (direction,))
    torch.testing.assert_close(curvature, torch.autograd.grad(gradient, leaf, direction)[0])


@pytest.mark.parametrize("name", ["q", "k", "v", "beta"])
def test_the_reference_has_forward_mode_in_single_precision(name):
    double = random_inputs(t=6, h=1, dtype=torch.float64)
    parts = {part: getattr(double, part) for part in ("q", "k", "v", "beta")}

    def tangent(dtype):
        inputs = replace(double, **{part: tensor.to(dtype) for part, tensor in parts.items()})
        x = getattr(inputs, name)

        def outputs(x):
            return replace(inputs, **{name: x}).run(OPTIONS, "reference")[0]

        return torch.func.jvp(outputs, (x,), (torch.ones_like(x),))[1]

    torch.testing.assert_close(tangent(torch.float32), tangent(torch.float64).float(), atol=1e-4, rtol=1e-3)


def test_what_a_transform_leaves_alone_is_computed_as_ever():
    """The keys do not depend on what is mapped over."""
    outputs, k = attention_of_keys("chunked")
    scaled = torch.func.vmap(lambda factor: factor * outputs(k))(torch.arange(3.0))
    torch.testing.assert_close(scaled, torch.stack([factor * outputs(k) for factor in range(3)]))


def test_the_batch_write_drops_no_tangent():
    inputs = random_inputs(dtype=torch.float32)
    device = "cuda" if ON_GPU else "cpu"
    state = empty_state(inputs, OPTIONS).to(device)
    k, v = inputs.k.to(device), inputs.v.to(device)
    with forward_ad.dual_level():
        k = forward_ad.make_dual(k, torch.ones_like(k))
        with pytest.raises(ValueError, match="a gradient is wanted"):
            update(state, k, v, OPTIONS, implementation="triton")


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_checkpointing_changes_no_gradient(implementation, use_reentrant):
    inputs = random_inputs(t=5, h=1, biased=True, dtype=dtype_of(implementation))

    def outputs(*leaves):
        o, state = inputs.with_leaves(list(leaves)).run(OPTIONS, implementation)
        return o, state.keys

    gradients = []
    for run in (outputs, lambda *leaves: checkpoint(outputs, *leaves, use_reentrant=use_reentrant)):
        leaves = inputs.leaves()
        o, keys = run(*leaves)
        (o.square().sum() + keys.sum()).backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
