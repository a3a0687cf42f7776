"""Attention whose temperature falls with the tokens that a query sees, against a softmax written here."""

import math

import pytest
import torch
from quick_settings import built

from cl_ovq.errors import UserError
from cl_ovq.mixers import OVQAttention, build_mixers
from cl_ovq.runs.checking import check_generalization
from kernels import DictionaryOptions

WIDTH, HEADS, LENGTH = 8, 2, 40
NAMES = ("ovq", "softmax", "vq")


def make(name, **dictionary):
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "heads": HEADS, "scalable_softmax": True}
    sizes |= {"codebook_size": 5} if name == "vq" else {}
    dictionary = {"capacity": 6, "chunk_size": 8} | dictionary
    sections = {"ovq": {"scope": "sequence", **dictionary}, "vq": {"chunk_size": 8}}
    config = built(model={"mixer": name, "depth": 1, **sizes}, dictionary=sections.get(name, {}))
    (mixer,) = build_mixers(config.model, config.dictionary)
    return mixer.double().eval()


def some_tokens():
    return torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def some_mask():
    mask = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(2)) > 0.3
    mask[0, :2] = False
    return mask


def attention(layer, x, mask, beta, *, unit):
    """Attention of each query, one at a time, over the valid tokens up to it; zero at masked ones."""
    size = WIDTH // HEADS
    q, k, v = (x @ weight.T for weight in layer.qkv.weight.chunk(3))
    y = torch.zeros_like(v)
    for b, s in mask.nonzero().tolist():
        seen = [j for j in range(s + 1) if mask[b, j]]
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            query, keys = q[b, s, part], k[b, seen, part]
            if unit:
                query, keys = query / query.norm(), keys / keys.norm(dim=-1, keepdim=True)
            scale = beta[h] * math.log(1 + len(seen)) / math.log(65)
            y[b, s, part] = (scale * (keys @ query)).softmax(0) @ v[b, seen, part]
    return y @ layer.out.weight.T


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["ovq", "softmax"])
def test_the_temperature_is_that_of_the_tokens_seen(name, masked):
    layer, x = make(name, growth="all", capacity=LENGTH, chunk_size=LENGTH), some_tokens()
    mask = some_mask() if masked else torch.ones(2, LENGTH, dtype=torch.bool)
    beta = layer.log_beta.exp() if name == "ovq" else torch.full((HEADS,), (WIDTH // HEADS) ** -0.5)
    expected = attention(layer, x, mask, beta, unit=name == "ovq")
    torch.testing.assert_close(layer(x, mask=mask)[0], expected, rtol=1e-6, atol=1e-6)  # log n is fp32


def test_of_codes_it_is_that_of_quantized_keys():
    layer, x = make("vq"), some_tokens()
    codes = layer.codebook.double()
    weight = layer.qkv.weight
    q, k, v = (y.view(2, LENGTH, HEADS, -1) for y in (x @ weight.T).chunk(3, -1))
    for s in (0, 7, 8, 39):
        for h in range(HEADS):
            keys = k[:, : s + 1, h] / k[:, : s + 1, h].norm(dim=-1, keepdim=True)
            nearest = (keys[:, :, None] - codes[h]).norm(dim=-1).argmin(-1)
            query = q[:, s, h] / q[:, s, h].norm(dim=-1, keepdim=True)
            scale = layer.log_beta[h].exp() * math.log(2 + s) / math.log(65)
            logits = scale * (codes[h][nearest] @ query[..., None])[..., 0]
            expected = (logits.softmax(-1)[..., None] * v[:, : s + 1, h]).sum(1)
            mixed, _ = layer.mix(x @ weight.T, x, None, None)
            found = mixed[:, s].view(2, HEADS, -1)[:, h]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pieces", [[1] * LENGTH, [3, 0, 37]], ids=["tokens", "three"])
@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_the_whole(name, pieces):
    layer, x, mask = make(name), some_tokens(), some_mask()
    whole, _ = layer(x, mask=mask)
    state, outputs = None, []
    for part, seen in zip(x.split(pieces, 1), mask.split(pieces, 1), strict=True):
        y, state = layer(part, mask=seen, state=state, return_state=True)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-9, atol=1e-9)


def test_what_a_dictionary_of_the_stream_holds_is_seen_too():
    layer, x = make("ovq", scope="stream", capacity=50, growth="all"), some_tokens()
    empty = layer(x)[0]
    with layer.dictionary.recording(evaluation=True):
        layer(x)
    layer.dictionary.write()
    assert int(layer.dictionary.state.tokens) == 2 * LENGTH
    other = OVQAttention(
        width=WIDTH,
        heads=HEADS,
        options=DictionaryOptions(capacity=50, chunk_size=8, growth="all"),
        persistent=True,
    ).double()
    other.load_state_dict(layer.state_dict())
    factor = math.log(2 + 2 * LENGTH) / math.log(65)  # of the first token, beside what is remembered
    other.log_beta.data += math.log(factor)
    torch.testing.assert_close(layer(x)[0][:, 0], other.eval()(x)[0][:, 0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(empty[:, 0], layer(x)[0][:, 0])


def test_what_does_not_go_with_it_is_refused():
    with pytest.raises(UserError, match=r"scalable_softmax requires dictionary\.read_out=raw or unit, not gmr"):
        make("ovq", read_out="gmr")
    options = DictionaryOptions(capacity=4, read_out="gmr")
    with pytest.raises(ValueError, match="scalable_softmax requires the read-out raw or unit"):
        OVQAttention(width=WIDTH, heads=HEADS, options=options, scalable_softmax=True)
    evaluation = {"log_length_scaling": True, "lengths": [64]}
    config = built(model={"mixer": "softmax", "scalable_softmax": True}, evaluation=evaluation)
    with pytest.raises(UserError, match=r"evaluation\.log_length_scaling: model\.scalable_softmax already scales"):
        check_generalization(config)
