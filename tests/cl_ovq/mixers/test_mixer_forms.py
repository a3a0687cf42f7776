"""Linear-time forms against their quadratic or recurrent ones, written here, or by another library."""

import math
from functools import partial

import pytest
import torch
from fla.ops.gsa.naive import naive_recurrent_gsa
from torch.nn import functional

from cl_ovq.mixers import (
    GatedDeltaNet,
    GatedSlotAttention,
    LinearAttention,
    Mamba2,
    SlidingWindowAttention,
    VQAttention,
    auxiliary_losses,
)
from cl_ovq.mixers.recurrences import chunked_slots, decaying_sum, gated_delta_rule
from cl_ovq.mixers.rotary import rotate
from cl_ovq.mixers.vq import nearest_code

WIDTH, HEADS, LENGTH = 8, 2, 75
SIZE = WIDTH // HEADS


def tokens(batch=2, length=LENGTH, seed=1):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_mask():
    mask = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(2)) > 0.3
    mask[0, :9] = False
    return mask


def projected(layer, x):
    """Queries, keys and values `[B, H, T, D]` of a layer without a convolution."""
    return (part.view(*x.shape[:2], HEADS, SIZE).transpose(1, 2) for part in (x @ layer.qkv.weight.T).chunk(3, -1))


def attend(layer, weights, v, mask):
    """Normalise weights `[B, H, T, T]` over visible tokens, apply them, and project; zero where nothing is seen."""
    weights = weights * mask[:, None, None, :]
    total = weights.sum(-1, keepdim=True)
    y = torch.where(total > 0, weights @ v / total.where(total > 0, torch.ones(())), 0.0)
    return y.transpose(1, 2).flatten(2) @ layer.out.weight.T * mask[..., None]


@pytest.fixture(params=[False, True], ids=["whole", "masked"])
def mask(request):
    return some_mask() if request.param else torch.ones(2, LENGTH, dtype=torch.bool)


def given(mask):
    return None if mask.all() else mask


@pytest.mark.parametrize("window", [1, 4, 16, 200])
def test_sliding_window_is_dense_attention_in_a_band(window, mask):
    torch.manual_seed(0)
    layer, x = SlidingWindowAttention(width=WIDTH, heads=HEADS, window=window).double(), tokens()
    q, k, v = projected(layer, x)
    # The angle between a query and a key, by complex numbers: feature i is the real part and i + D / 2 the imaginary.
    q, k = (torch.complex(*part.chunk(2, -1)) for part in (q, k))
    turn = 10_000.0 ** (-torch.arange(SIZE // 2, dtype=torch.float64) / (SIZE // 2))
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    turned = torch.exp(1j * distance[..., None] * turn)  # [T, T, D / 2]
    logits = torch.einsum("bhti,bhji,tji->bhtj", q, k.conj(), turned).real / math.sqrt(SIZE)
    band = (distance >= 0) & (distance < window)
    torch.testing.assert_close(layer(x, mask=given(mask))[0], attend(layer, logits.exp() * band, v, mask))


def test_rotation_depends_on_distance_alone_and_keeps_lengths():
    x = torch.randn(3, 10, 6, dtype=torch.float64)
    here, there = rotate(x), rotate(x, 1000)
    torch.testing.assert_close(here @ here.transpose(-1, -2), there @ there.transpose(-1, -2))
    torch.testing.assert_close(here.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(here, x)


def test_linear_attention_is_its_quadratic_form(mask):
    torch.manual_seed(0)
    layer, x = LinearAttention(width=WIDTH, heads=HEADS).double(), tokens()
    q, k, v = projected(layer, x)
    weights = ((functional.elu(q) + 1) @ (functional.elu(k) + 1).transpose(-1, -2)).tril()
    torch.testing.assert_close(layer(x, mask=given(mask))[0], attend(layer, weights, v, mask))


def vq(**changes):
    torch.manual_seed(0)
    return VQAttention(width=WIDTH, heads=HEADS, codebook_size=7, **changes).double()


def quantized(layer, k):
    """Every key's nearest code, by all distances."""
    k = functional.normalize(k, dim=-1)
    index = torch.cdist(k, layer.codebook[None].double()).argmin(-1)  # [B, H, T]
    codes = torch.stack([layer.codebook[head][index[:, head]] for head in range(HEADS)], 1)
    return k, index, codes


@pytest.mark.parametrize("chunk_size", [1, 16, 100])
def test_vq_is_quadratic_attention_over_quantized_keys(chunk_size, mask):
    layer, x = vq(chunk_size=chunk_size).eval(), tokens()
    q, k, v = projected(layer, x)
    _, _, codes = quantized(layer, k)
    logits = layer.log_beta.exp()[:, None, None] * functional.normalize(q, dim=-1) @ codes.transpose(-1, -2)
    torch.testing.assert_close(layer(x, mask=given(mask))[0], attend(layer, logits.exp().tril(), v, mask))


def test_gradients_pass_quantization_straight_through():
    """In one chunk, the gradient of the weights is that of attention whose keys are `k + constant`."""
    layer, x = vq(chunk_size=100).eval(), tokens()
    (ours,) = torch.autograd.grad(layer(x)[0].sin().sum(), layer.qkv.weight)
    q, k, v = projected(layer, x)
    k, _, codes = quantized(layer, k)
    keys = k + (codes - k).detach()
    logits = layer.log_beta.exp()[:, None, None] * functional.normalize(q, dim=-1) @ keys.transpose(-1, -2)
    y = attend(layer, logits.exp().tril(), v, torch.ones(2, LENGTH, dtype=torch.bool))
    (expected,) = torch.autograd.grad(y.sin().sum(), layer.qkv.weight)
    torch.testing.assert_close(ours, expected)


def test_the_commitment_loss_is_the_mean_squared_distance_of_valid_keys():
    layer, x, mask = vq(commitment=0.5).train(), tokens(), some_mask()
    layer.started.fill_(True)
    layer.usage += 1
    layer.sums += layer.codebook
    with torch.no_grad():
        k, _, codes = quantized(layer, list(projected(layer, x))[1])
    with auxiliary_losses(layer) as losses:
        layer(x, mask=mask)
    distances = (k - codes).square().sum(-1).transpose(1, 2)[mask]
    torch.testing.assert_close(losses[0].detach(), 0.5 * distances.mean())


def test_the_codebook_is_the_running_mean_of_the_keys_that_chose_each_code():
    layer, mask = vq(decay=0.9).train(), some_mask()
    layer(tokens(), mask=mask)  # starts the codebook at keys
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = tokens(seed=5)
    with torch.no_grad():
        k, index, _ = quantized(layer, list(projected(layer, x))[1])
    layer(x, mask=mask)
    for head in range(HEADS):
        for code in range(7):
            chosen = mask & (index[:, head] == code)
            usage = 0.9 * before["usage"][head, code] + 0.1 * chosen.sum()
            sums = 0.9 * before["sums"][head, code] + 0.1 * k[:, head][chosen].sum(0)
            assert usage > 0.05 * mask.sum() / 7  # none is dead here
            torch.testing.assert_close(layer.usage[head, code], usage)
            torch.testing.assert_close(layer.codebook[head, code], sums / usage)


def test_the_codebook_starts_at_keys_and_dead_codes_start_again():
    layer, x = vq(decay=0.0).train(), tokens()
    k, _, _ = quantized(layer, list(projected(layer, x))[1])
    layer._start(k.detach(), torch.ones(2, LENGTH, dtype=torch.bool))
    for head in range(HEADS):
        assert torch.cdist(layer.codebook[head], k[:, head].flatten(0, 1)).min(-1).values.max() < 1e-6
    layer.codebook[:, 3] = -100.0  # far from every key
    layer(x)
    for head in range(HEADS):
        assert torch.cdist(layer.codebook[head, 3:4], k[:, head].flatten(0, 1)).min() < 1e-6


def test_evaluation_and_hidden_tokens_leave_the_codebook_alone():
    layer = vq()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.eval()(tokens())
    layer.train()(tokens(), mask=torch.zeros(2, LENGTH, dtype=torch.bool))
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_ties_in_the_codebook_are_settled_by_order():
    assert nearest_code(torch.ones(1, 1, 1, 2), torch.ones(1, 3, 2)).item() == 0


def random_gates(*names, seed=3, slots=5):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"q": SIZE, "k": SIZE, "v": 3, "s": slots, "slot_decay": slots}
    parts = []
    for name in names:
        part = torch.randn(2, LENGTH, HEADS, *([sizes[name]] if name in sizes else []), generator=generator)
        if name == "k":
            part = functional.normalize(part, dim=-1)
        if name in ("g", "slot_decay"):
            part = -functional.softplus(part)
        parts.append(part.sigmoid() if name in ("beta", "s") else part)
    return parts


def test_the_gated_delta_rule_is_its_recurrence():
    q, k, v, g, beta = random_gates("q", "k", "v", "g", "beta")
    state = torch.randn(2, HEADS, SIZE, 3)
    o, final = gated_delta_rule(q, k, v, g, beta, state)
    for t in range(LENGTH):
        decayed = g[:, t, :, None, None].exp() * state
        known = torch.einsum("bhk,bhkv->bhv", k[:, t], decayed)
        change = beta[:, t, :, None] * (v[:, t] - known)
        state = decayed + k[:, t, :, :, None] * change[:, :, None]
        torch.testing.assert_close(o[:, t], torch.einsum("bhk,bhkv->bhv", q[:, t], state), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(final, state, atol=2e-5, rtol=1e-4)


def test_the_decaying_sum_is_its_recurrence():
    q, k, v, g = random_gates("q", "k", "v", "g")
    state = torch.randn(2, HEADS, SIZE, 3)
    o, final = decaying_sum(q, k, v, g, state)
    for t in range(LENGTH):
        state = g[:, t, :, None, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None]
        torch.testing.assert_close(o[:, t], torch.einsum("bhk,bhkv->bhv", q[:, t], state), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(final, state, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 16, 100])
def test_chunked_slots_are_the_librarys_recurrence(chunk):
    q, k, v, s, g = random_gates("q", "k", "v", "s", "slot_decay")
    state = torch.randn(2, HEADS, SIZE, 5), torch.randn(2, HEADS, 5, 3)
    expected, last = naive_recurrent_gsa(q, k, v, s, g, scale=1.0, initial_state=state, output_final_state=True)
    o, final = chunked_slots(q, k, v, s, g, state, chunk)
    torch.testing.assert_close(o, expected, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(final, last, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_hard_gates_stay_finite():
    """Decays so strong that their inverse overflows, as a form that divides by them would find."""
    q, k, v, s, g = random_gates("q", "k", "v", "s", "slot_decay")
    for part in (q, k, v, s, g):
        part.requires_grad_()
    o, _ = chunked_slots(q, k, v, s, 200 * g, None)
    o.sum().backward()
    assert o.isfinite().all()
    assert all(part.grad.isfinite().all() for part in (q, k, v, s, g))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GatedDeltaNet(width=WIDTH, heads=HEADS, convolution=4),
        lambda: Mamba2(width=WIDTH, heads=HEADS, state_size=3, convolution=4),
        lambda: GatedSlotAttention(width=WIDTH, heads=HEADS, slots=4, convolution=4),
    ],
)
def test_every_parameter_of_a_gated_mixer_matters(make):
    torch.manual_seed(0)
    layer = make()
    layer(tokens().float())[0].sin().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("mixer", ["gated_delta", "mamba2"])
def test_the_longest_step_bounds_what_a_token_makes_a_state_forget(mixer):
    def steps(longest):
        torch.manual_seed(0)
        made = {"gated_delta": GatedDeltaNet, "mamba2": partial(Mamba2, state_size=4)}[mixer]
        return functional.softplus(made(width=64, heads=64, dt_max=longest).step_bias)

    wide, narrow = steps(0.1), steps(0.001)
    assert ((wide > 0.99e-3) & (wide < 0.101)).all()
    assert wide.max() > 0.05
    torch.testing.assert_close(narrow, torch.full_like(narrow, 1e-3), rtol=1e-3, atol=0)
