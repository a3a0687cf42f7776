"""What holds for every mixer of the registry: pieces, causality, masks, and the size of the state."""

import subprocess
import sys

import pytest
import torch
from quick_settings import built

from cl_ovq.errors import UserError
from cl_ovq.mixers import MIXERS, Mixer, MixerOptions, OVQAttention, auxiliary_losses, build_mixers, layer_mixers
from kernels import DictionaryOptions

WIDTH, LENGTH = 8, 40  # longer than the chunks of flash-linear-attention on a CPU
FP32_INSIDE = ("gated_delta", "gated_slot", "mamba2")
POSITIONED = ("sliding_window",)


def make(name, **changes):
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "heads": 2, "window": 6, "codebook_size": 5, "slots": 4, "state_size": 3, **changes}
    dictionary = {"scope": "sequence", "capacity": 6, "chunk_size": 8}
    config = built(model={"mixer": name, "depth": 1, **sizes}, dictionary=dictionary)
    (mixer,) = build_mixers(config.model, config.dictionary)
    mixer = mixer.double()
    if getattr(mixer, "convolution", None) is not None:
        torch.nn.init.normal_(mixer.convolution.weight)
    return mixer.eval()


def tokens(batch=2, length=LENGTH, seed=1):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_mask(batch=2, length=LENGTH):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) > 0.3
    mask[0, :2] = False  # queries that see nothing
    return mask


def tolerance(name):
    return {"atol": 2e-5, "rtol": 2e-5} if name in FP32_INSIDE else {"atol": 1e-9, "rtol": 1e-9}


@pytest.mark.parametrize("convolution", [0, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [3, 37], [2, 0, 33, 5]], ids=["tokens", "two", "three and none"])
@pytest.mark.parametrize("name", MIXERS)
def test_pieces_are_the_whole(name, pieces, masked, convolution):
    layer, x = make(name, convolution=convolution), tokens()
    mask = some_mask() if masked else None
    with torch.no_grad():
        whole, last = layer(x, mask=mask, return_state=True)
        state, outputs, start = None, [], 0
        for size in pieces:
            part = slice(start, start + size)
            y, state = layer(x[:, part], mask=None if mask is None else mask[:, part], state=state, return_state=True)
            outputs.append(y)
            start += size
    torch.testing.assert_close(torch.cat(outputs, 1), whole, **tolerance(name))
    assert state.nbytes == last.nbytes
    assert layer(x)[1] is None


@pytest.mark.parametrize("name", MIXERS)
def test_sequences_may_begin_with_no_tokens(name):
    layer, x = make(name, convolution=3), tokens()
    with torch.no_grad():
        y, state = layer(x[:, :0], return_state=True)
        assert y.shape == (2, 0, WIDTH)
        torch.testing.assert_close(layer(x, state=state)[0], layer(x)[0], **tolerance(name))


@pytest.mark.parametrize("name", MIXERS)
def test_jacobian_is_lower_triangular(name):
    layer, x = make(name), tokens(batch=1, length=11)
    jacobian = torch.autograd.functional.jacobian(lambda inputs: layer(inputs)[0], x)
    influence = jacobian.abs().sum((0, 2, 3, 5))  # [T, T]: of input token j on output token i
    assert (influence.triu(1) == 0).all()
    seen = torch.ones_like(influence).tril() > 0
    if name == "sliding_window":
        seen &= torch.ones_like(influence).triu(-5) > 0
        assert (influence[~seen] == 0).all()
    assert (influence[seen] > 0).all()  # every earlier token is read


@pytest.mark.parametrize("name", MIXERS)
def test_masked_tokens_are_as_good_as_absent(name):
    layer, x, mask = make(name), tokens(), some_mask()
    with torch.no_grad():
        y, _ = layer(x, mask=mask)
        assert (y[~mask] == 0).all()
        changed, _ = layer(torch.where(mask[..., None], x, torch.randn_like(x)), mask=mask)
        torch.testing.assert_close(changed, y, **tolerance(name))
        if name in POSITIONED or name == "ovq":  # an OVQ chunk counts masked tokens: other chunks, other dictionaries
            return
        for row in range(2):
            alone, _ = layer(x[row : row + 1, mask[row]])
            torch.testing.assert_close(y[row : row + 1, mask[row]], alone, **tolerance(name))


@pytest.mark.parametrize("convolution", [0, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", MIXERS)
def test_nothing_that_masked_tokens_hold_reaches_outputs_state_or_gradients(name, value, convolution):
    layer, mask = make(name, convolution=convolution), some_mask()

    def results(held):
        x = torch.where(mask[..., None], tokens(), held).requires_grad_()
        y, state = layer(x, mask=mask, return_state=True)
        after, _ = layer(tokens(seed=3, length=9), state=state)
        weights = [weight for weight in layer.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(y.square().sum() + after.square().sum(), [x, *weights])
        return [y, after, *gradients]

    for found, expected in zip(results(value), results(0.0), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_finite_where_a_query_sees_nothing(name):
    layer, x = make(name), tokens().requires_grad_()
    layer(x, mask=some_mask())[0].square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("convolution", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MIXERS)
def test_state_bytes_are_those_of_the_state(name, dtype, convolution):
    layer = make(name, convolution=convolution).to(dtype)
    for length in (1, 5, 6, 7, LENGTH):
        state = layer(tokens(batch=1, length=length).to(dtype), return_state=True)[1]
        assert layer.state_bytes(length) == state.nbytes


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "ovq"])  # whose `options` are the operator's
def test_state_bytes_of_a_mixer_that_does_not_say_are_found(name):
    layer = make(name, convolution=4)
    layer.options = MixerOptions(width=WIDTH)
    for length in (1, LENGTH):
        assert Mixer.state_bytes(layer, length) == layer.state_bytes(length)


@pytest.mark.parametrize("name", MIXERS)
def test_only_softmax_has_a_state_that_grows(name):
    sizes = {make(name).state_bytes(length) for length in (64, 640, 64 * 10**6)}
    assert len(sizes) == (3 if name == "softmax" else 1)


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_keeps_shape_and_type_and_describes_itself(name):
    layer = make(name).float()
    y, state = layer(tokens().float())
    assert (y.shape, y.dtype, state) == ((2, LENGTH, WIDTH), torch.float32, None)
    assert repr(layer)


def test_a_pattern_is_repeated_over_the_layers():
    sizes = {"width": WIDTH, "heads": 2, "depth": 3, "mixer": "linear"}
    config = built(model=sizes | {"pattern": ["sliding_window", "ovq"]})
    model = config.model
    assert layer_mixers(model) == ["sliding_window", "ovq", "sliding_window"]
    assert [type(mixer).__name__ for mixer in build_mixers(model, config.dictionary)] == [
        "SlidingWindowAttention",
        "OVQAttention",
        "SlidingWindowAttention",
    ]
    assert layer_mixers(built(model=sizes).model) == ["linear"] * 3


def test_losses_are_collected_from_the_mixers_that_have_them_and_only_then():
    mixers = torch.nn.ModuleList([make("vq"), make("softmax"), make("vq")]).train()
    with auxiliary_losses(mixers) as losses:
        for mixer in mixers:
            mixer(tokens())
    assert len(losses) == 2
    assert all(loss.requires_grad and loss > 0 for loss in losses)
    for mixer in mixers:
        mixer(tokens())
        assert mixer.losses is None
    with auxiliary_losses(mixers.eval()) as losses:
        mixers[0](tokens())
    assert losses == []


def test_importing_the_mixers_does_not_import_flash_linear_attention():
    code = "import sys, cl_ovq.mixers; print('fla' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", FP32_INSIDE)
def test_a_missing_library_is_named_with_the_way_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    monkeypatch.delitem(sys.modules, "fla.ops", raising=False)
    with pytest.raises(UserError, match=rf"'{name}' requires flash-linear-attention .*: install it with `pip install"):
        make(name)


def test_ovq_is_of_the_registry():
    assert isinstance(make("ovq"), OVQAttention)


@pytest.mark.parametrize("name", MIXERS)
def test_queries_start_as_keys_and_values_stay(name):
    mixer = make(name)
    before = mixer.qkv.weight.detach().clone()
    mixer.start_queries_as_keys()
    if name == "mamba2":  # values first, then keys and queries that all heads share
        size = mixer.state_size
        v, k, q = mixer.qkv.weight.detach().split((before.shape[0] - 2 * size, size, size))
    else:
        q, k, v = mixer.qkv.weight.detach().chunk(3)
    assert torch.equal(q, k)
    assert not torch.equal(mixer.qkv.weight, before)
    rows = {tuple(row) for row in before.tolist()}
    assert all(tuple(row) in rows for row in torch.cat([k, v]).tolist())
    assert {tuple(row) for row in v.tolist()}.isdisjoint(tuple(row) for row in k.tolist())


def test_query_heads_that_share_keys_all_start_as_them():
    options = DictionaryOptions(capacity=4, chunk_size=4)
    mixer = OVQAttention(width=12, heads=4, key_value_heads=2, head_dim=3, options=options)
    mixer.start_queries_as_keys()
    heads = mixer.qkv.weight.detach().unflatten(0, (8, 3))
    for query in range(4):
        assert torch.equal(heads[query], heads[4 + query // 2])
