"""OVQ and softmax attention against formulas written here."""

import math

import pytest
import torch

from cl_ovq.mixers import OVQAttention, SoftmaxAttention
from cl_ovq.mixers.convolution import ShortConvolution
from kernels import DictionaryOptions

WIDTH, HEADS = 8, 2


def ovq(capacity=6, chunk_size=3, **changes):
    torch.manual_seed(0)
    options = DictionaryOptions(capacity=capacity, chunk_size=chunk_size, **changes)
    return OVQAttention(width=WIDTH, heads=HEADS, options=options).double()


def softmax():
    torch.manual_seed(0)
    return SoftmaxAttention(width=WIDTH, heads=HEADS).double()


def tokens(batch=2, length=7, seed=1):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_attention(layer, x, mask, *, normalise=False, beta=None):
    """Attention of each query, one at a time, over the valid tokens up to it; zero where there are none."""
    batch, length, _ = x.shape
    size = WIDTH // HEADS
    q, k, v = (x @ weight.T for weight in layer.qkv.weight.chunk(3))
    y = torch.zeros_like(v)
    for b in range(batch):
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            for s in range(length):
                seen = [j for j in range(s + 1) if mask[b, j]]
                if not mask[b, s] or not seen:
                    continue
                query, keys = q[b, s, part], k[b, seen, part]
                if normalise:
                    query, keys = query / query.norm(), keys / keys.norm(dim=-1, keepdim=True)
                scale = 1 / math.sqrt(size) if beta is None else beta[h]
                weights = (scale * (keys @ query)).exp()
                y[b, s, part] = (weights / weights.sum()) @ v[b, seen, part]
    return y @ layer.out.weight.T


def some_mask(batch=2, length=7):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) > 0.3
    mask[0, :2] = False  # queries that see nothing
    return mask


def test_softmax_is_attention():
    layer, x = softmax(), tokens()
    torch.testing.assert_close(layer(x)[0], naive_attention(layer, x, torch.ones(2, 7, dtype=torch.bool)))


def test_softmax_reads_no_masked_token():
    layer, x, mask = softmax(), tokens(), some_mask()
    y, _ = layer(x, mask=mask)
    torch.testing.assert_close(y, naive_attention(layer, x, mask))
    assert (y[~mask] == 0).all()
    y.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


@pytest.mark.parametrize("chunk_size", [7, 9])
def test_ovq_with_all_slots_is_softmax_over_normalised_keys(chunk_size):
    layer, x = ovq(capacity=7, chunk_size=chunk_size, growth="all"), tokens()
    expected = naive_attention(
        layer, x, torch.ones(2, 7, dtype=torch.bool), normalise=True, beta=layer.log_beta.exp().tolist()
    )
    torch.testing.assert_close(layer(x)[0], expected)


def test_ovq_with_all_slots_is_softmax_also_across_chunks_and_with_a_mask():
    layer, x, mask = ovq(capacity=7, chunk_size=2, growth="all"), tokens(), some_mask()
    expected = naive_attention(layer, x, mask, normalise=True, beta=layer.log_beta.exp().tolist())
    torch.testing.assert_close(layer(x, mask=mask)[0], expected)


def test_ovq_compresses_where_slots_are_few():
    layer, x = ovq(capacity=2, chunk_size=2), tokens()
    exact = naive_attention(
        layer, x, torch.ones(2, 7, dtype=torch.bool), normalise=True, beta=layer.log_beta.exp().tolist()
    )
    y, _ = layer(x)
    torch.testing.assert_close(y[:, :2], exact[:, :2])
    assert (y[:, 2:] - exact[:, 2:]).abs().max() > 1e-3


def test_temperature_starts_at_the_root_of_the_head_size():
    torch.testing.assert_close(ovq().log_beta.exp(), torch.full((HEADS,), 2.0, dtype=torch.float64))


def test_state_bytes_of_ovq_are_bounded():
    layer = ovq(capacity=6, chunk_size=3)
    assert max(map(layer.state_bytes, range(100))) == layer.state_bytes(2) == layer.state_bytes(2 + 3 * 10**6)
    assert softmax().state_bytes(200) == 2 * softmax().state_bytes(100)


@pytest.mark.parametrize("convolution", [0, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_token_by_token_is_the_whole_for_every_form_of_the_layer(groups, convolution):
    torch.manual_seed(0)
    options = DictionaryOptions(capacity=6, chunk_size=4)
    layer = OVQAttention(width=8, heads=4, head_dim=5, key_value_heads=groups, convolution=convolution, options=options)
    if convolution:
        torch.nn.init.normal_(layer.convolution.weight)
    x = torch.randn(2, 11, 8)
    with torch.no_grad():
        whole, last = layer(x, return_state=True)
        pieces, state = [], None
        for t in range(11):
            y, state = layer(x[:, t : t + 1], state=state, return_state=True)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert state.dictionary.counts.shape == (2, groups, 6)
    assert layer.state_bytes(11) * 2 == state.nbytes == last.nbytes


def test_grouped_heads_share_keys_and_values():
    """Two query heads on one key and value head are four heads whose keys and values agree in pairs."""
    torch.manual_seed(0)
    options = DictionaryOptions(capacity=6, chunk_size=4)
    grouped = OVQAttention(width=8, heads=4, key_value_heads=2, options=options)
    full = OVQAttention(width=8, heads=4, options=options)
    q, k, v = grouped.qkv.weight.detach().split((8, 4, 4))
    k, v = (part.view(2, 2, 8).repeat_interleave(2, 0).reshape(8, 8) for part in (k, v))
    with torch.no_grad():
        full.qkv.weight.copy_(torch.cat((q, k, v)))
        full.out.weight.copy_(grouped.out.weight)
        x = torch.randn(2, 11, 8)
        torch.testing.assert_close(grouped(x)[0], full(x)[0])


def test_a_new_convolution_changes_nothing_and_is_causal():
    torch.manual_seed(0)
    convolution = ShortConvolution(3, 4)
    x = torch.randn(2, 6, 3)
    assert torch.equal(convolution(x)[0], x)
    torch.nn.init.normal_(convolution.weight)
    y = convolution(x)[0]
    expected = sum(
        convolution.weight[:, 0, 3 - back] * torch.cat((torch.zeros(2, back, 3), x[:, : 6 - back]), 1)
        for back in range(4)
    )
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"heads": 4, "key_value_heads": 3}])
def test_sizes_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match="does not divide"):
        OVQAttention(width=8, options=DictionaryOptions(capacity=4), **sizes)


@pytest.mark.parametrize("tokens", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_tokens_one_at_a_time(tokens):
    torch.manual_seed(0)
    layer = OVQAttention(width=8, heads=2, options=DictionaryOptions(capacity=32, chunk_size=64))
    x = torch.randn(1, tokens, 8)
    with torch.no_grad():
        whole, _ = layer(x)
        state, pieces = None, []
        for token in x.split(1, 1):
            y, state = layer(token, state=state, return_state=True)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)
