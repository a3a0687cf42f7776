"""What lies in a mixer's buffers: it keeps its type when the model is cast, and its place when it changes."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from cl_ovq.mixers import OVQAttention, PersistentDictionary, VQAttention
from cl_ovq.mixers.operations import forget, merge, resize
from kernels import DictionaryOptions

WIDTH, HEADS = 8, 2
OPTIONS = DictionaryOptions(capacity=6, chunk_size=4)
MADE = {
    "ovq": lambda: OVQAttention(
        width=WIDTH, heads=HEADS, options=OPTIONS, persistent=True, dictionary_weight=None, sums=True
    ),
    "vq": lambda: VQAttention(width=WIDTH, heads=HEADS, codebook_size=4),
}


@pytest.fixture(params=MADE.values(), ids=MADE)
def make(request):
    torch.manual_seed(0)
    return request.param


def tokens(seed=1, dtype=torch.float32):
    return torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train_step(layer, x):
    if not isinstance(layer, OVQAttention):
        layer(x)
        return
    with layer.dictionary.recording():
        y, _ = layer(x)
    y.float().square().sum().backward()
    layer.dictionary.write()


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CASTS = {
    "half": (lambda layer: layer.half(), torch.float16, torch.float32),
    "bfloat16": (lambda layer: layer.bfloat16(), torch.bfloat16, torch.float32),
    "to(bfloat16)": (lambda layer: layer.to(torch.bfloat16), torch.bfloat16, torch.float32),
    "double": (lambda layer: layer.double(), torch.float64, torch.float64),
    "type(float64)": (lambda layer: layer.type(torch.float64), torch.float64, torch.float64),
    "double, half": (lambda layer: layer.double().half(), torch.float16, torch.float32),
    "double, float": (lambda layer: layer.double().float(), torch.float32, torch.float32),
}


@pytest.mark.parametrize(("cast", "weights", "statistics"), CASTS.values(), ids=CASTS)
def test_statistics_keep_their_type_whatever_the_model_becomes(make, cast, weights, statistics):
    layer, other = make(), make()
    train_step(layer, tokens())
    exact = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer = cast(layer)
    assert layer.qkv.weight.dtype == weights
    for name, buffer in layer.named_buffers():
        assert buffer.dtype == (statistics if exact[name].is_floating_point() else exact[name].dtype), name
        assert torch.equal(buffer, exact[name].to(buffer.dtype)), name  # nothing was rounded on the way
    train_step(layer, tokens(seed=2, dtype=weights))
    layer.eval()
    y = layer(tokens(dtype=weights))[0]
    assert y.dtype == weights
    assert y.isfinite().all()
    other = cast(other)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(tokens(dtype=weights))[0], y)
    train_step(other.train(), tokens(seed=3, dtype=weights))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_can_be_made_under_another_default_type(make, dtype):
    with default_dtype(dtype):
        layer = make()
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {buffer.dtype for buffer in layer.buffers() if buffer.is_floating_point()} == {expected}
    train_step(layer, tokens(dtype=dtype))
    assert layer.eval()(tokens(dtype=dtype))[0].dtype == dtype


def test_whoever_holds_a_buffer_sees_every_change(make):
    layer, other = make(), make()
    changes = [lambda: train_step(layer, tokens()), lambda: layer.load_state_dict(other.state_dict())]
    train_step(other, tokens(seed=2))
    if isinstance(layer, OVQAttention):
        dictionary = layer.dictionary
        other.dictionary.begin_task(3)
        changes += [
            lambda: dictionary.begin_task(2),
            lambda: train_step(layer, tokens(seed=3)),
            lambda: forget(dictionary, 2),
            lambda: merge(dictionary, other.dictionary),
            lambda: layer.load_state_dict(other.state_dict()),
            lambda: resize(layer, 3),
            lambda: train_step(layer, tokens(seed=4)),
            lambda: setattr(dictionary, "state", dictionary.state.reset()),
            lambda: dictionary.reset(),
        ]
    held = dict(layer.named_buffers())
    for change in changes:
        change()
        for name, buffer in layer.named_buffers():
            assert buffer is held[name], name
    assert set(held) == {name for name, _ in layer.named_buffers()}


def test_a_state_that_was_read_does_not_change_with_a_write():
    torch.manual_seed(0)
    layer = MADE["ovq"]()
    train_step(layer, tokens())
    state = layer.dictionary.state
    _, going_on = layer(tokens()[:, :2], return_state=True)  # shares its dictionary while no chunk has closed
    before = [state.clone(), going_on.dictionary.clone()]
    with layer.dictionary.recording():
        y, _ = layer(tokens(seed=2))
    layer.dictionary.write()  # before the backward pass, whose gradient is that of the entries that were read
    y.sum().backward()
    for was, now in zip(before, [state, going_on.dictionary], strict=True):
        for name, tensor in was.state_dict().items():
            assert torch.equal(now.state_dict()[name], tensor), name
    assert not torch.equal(layer.dictionary.state.keys, state.keys)


def test_averaged_models_and_copies_follow_and_stay_apart(make):
    layer = make()
    average = AveragedModel(layer)
    for seed in range(3):
        train_step(layer, tokens(seed))
        average.update_parameters(layer)
        for (name, mine), theirs in zip(layer.named_buffers(), average.module.buffers(), strict=True):
            assert torch.equal(mine, theirs), name
    apart = copy.deepcopy(layer)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    train_step(apart, tokens(seed=5))
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_a_dictionary_of_its_own_is_cast_alike():
    dictionary = PersistentDictionary(heads=1, key_dim=2, value_dim=3, options=OPTIONS).half()
    assert dictionary.keys.dtype == torch.float32
    assert dictionary.counts.dtype == torch.int64
