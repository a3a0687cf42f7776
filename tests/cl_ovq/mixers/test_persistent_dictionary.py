"""The dictionary that outlives its sequences: who reads it, who writes it, and how it is kept."""

import contextlib
import copy

import pytest
import torch

from cl_ovq.errors import UserError
from cl_ovq.mixers import OVQAttention, dictionaries, writing
from cl_ovq.mixers.ovq import OVQState
from kernels import DictionaryOptions, DictionaryState, update, write

WIDTH, HEADS = 8, 2
OPTIONS = DictionaryOptions(capacity=6, chunk_size=4)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return OVQAttention(width=WIDTH, heads=HEADS, options=OPTIONS, persistent=True, dictionary_weight=None)


def tokens(batch=3, length=4, seed=1):
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def train_step(layer, x, mask=None):
    with layer.dictionary.recording():
        layer(x, mask=mask)
    layer.dictionary.write()


def bytes_of(layer):
    return {name: tensor.clone() for name, tensor in layer.dictionary.state_dict().items()}


def unchanged(layer, before):
    after = layer.dictionary.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_its_buffers_are_named_as_the_state_and_start_empty(layer):
    names = set(DictionaryState.empty((1, 1, 1, 1, 1)).state_dict())
    assert names <= set(layer.dictionary.state_dict())
    assert layer.dictionary.state.size.sum() == 0
    assert list(dictionaries(torch.nn.Sequential(layer))) == ["0.dictionary"]


def test_a_write_is_one_update_with_all_tokens_of_the_batch(layer):
    x = tokens()
    with torch.no_grad():
        _, k, v = layer.qkv(x).view(3, 4, 3, HEADS, WIDTH // HEADS).unbind(2)
    expected, _ = update(layer.dictionary.state, k, v, OPTIONS)
    train_step(layer, x)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(getattr(layer.dictionary, name), tensor), name
    assert layer.dictionary.writes == 1
    assert layer.dictionary.state.tokens.tolist() == [12]
    assert (layer.dictionary.state.counts.sum(-1) == 12).all()


def test_masked_tokens_are_not_written(layer):
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 1:] = mask[2, 0] = False
    train_step(layer, tokens(), mask)
    assert layer.dictionary.state.tokens.tolist() == [8]
    assert (layer.dictionary.state.counts.sum(-1) == 8).all()
    assert layer.dictionary.writes == 1


def test_all_rows_read_it(layer):
    x = tokens()
    layer.eval()
    before = layer(x)[0]
    layer.train()
    train_step(layer, tokens(seed=2))
    layer.eval()
    after = layer(x)[0]
    assert ((after - before).abs().amax((1, 2)) > 1e-4).all()
    # Each row as if it came alone: rows do not see one another.
    torch.testing.assert_close(torch.cat([layer(row)[0] for row in x.split(1)]), after)
    # Just what a sequence sees that starts from this state.
    shared, layer.dictionary = layer.dictionary, None
    torch.testing.assert_close(layer(x, state=OVQState(shared.state, None))[0], after)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_evaluation_leaves_every_byte(layer, length):
    train_step(layer, tokens())
    before = bytes_of(layer)
    layer.eval()
    with layer.dictionary.recording():
        layer(tokens(length=length), return_state=True)
    with pytest.raises(UserError, match="nothing to write"):
        layer.dictionary.write()
    assert unchanged(layer, before)
    assert layer.dictionary.writes == 1


def test_training_passes_write_nothing_by_themselves(layer):
    train_step(layer, tokens())
    before = bytes_of(layer)
    with layer.dictionary.recording():
        layer(tokens(length=9))
    assert unchanged(layer, before)


def test_passes_outside_recording_are_not_written(layer):
    layer(tokens())
    with layer.dictionary.recording():
        layer(tokens())
    layer(tokens())
    layer.dictionary.write()
    assert layer.dictionary.writes == 1
    assert layer.dictionary.state.tokens.tolist() == [12]


def test_a_write_without_anything_recorded_is_a_mistake(layer):
    layer(tokens())
    with pytest.raises(UserError, match=r"nothing to write.*dictionary\.recording\(\)"):
        layer.dictionary.write()
    train_step(layer, tokens())
    with pytest.raises(UserError, match="nothing to write"):  # twice in a step
        layer.dictionary.write()
    assert layer.dictionary.writes == 1
    layer.dictionary.write([])  # tokens that were taken, of which there are none
    assert layer.dictionary.writes == 1


@pytest.mark.parametrize("passes", ["none", "of evaluation"])
def test_a_recording_of_nothing_is_a_mistake(layer, passes):
    layer.eval()
    with layer.dictionary.recording():
        if passes == "of evaluation":
            layer(tokens())
    with pytest.raises(UserError, match=r"nothing to write.*training mode"):
        layer.dictionary.write()
    with layer.dictionary.recording(evaluation=True):
        layer(tokens())
    layer.dictionary.write()
    assert layer.dictionary.writes == 1


def test_a_recording_within_a_recording_does_not_end_it(layer):
    with layer.dictionary.recording():
        with layer.dictionary.recording(evaluation=True):
            layer(tokens())
        layer(tokens())
        layer.eval()(tokens())  # the outer one is of training passes alone
    layer.dictionary.write()
    assert layer.dictionary.state.tokens.tolist() == [24]


def test_recording_ends_with_an_error(layer):
    with pytest.raises(RuntimeError, match="stop"), layer.dictionary.recording():
        raise RuntimeError("stop")
    layer(tokens())
    with pytest.raises(UserError, match="nothing to write"):
        layer.dictionary.write()


def test_it_holds_no_graph(layer):
    train_step(layer, tokens())
    assert not any(tensor.requires_grad for tensor in layer.dictionary.state.state_dict().values())
    layer(tokens())[0].sum().backward()
    assert layer.qkv.weight.grad.abs().sum() > 0


def test_state_dict_round_trip(layer):
    train_step(layer, tokens())
    other = OVQAttention(width=WIDTH, heads=HEADS, options=OPTIONS, persistent=True, dictionary_weight=None)
    other.load_state_dict(layer.state_dict())
    layer.eval(), other.eval()
    assert torch.equal(other(tokens())[0], layer(tokens())[0])
    layer.train(), other.train()
    train_step(layer, tokens(seed=3))
    train_step(other, tokens(seed=3))
    assert unchanged(other, bytes_of(layer))


def test_deepcopy_is_independent(layer):
    train_step(layer, tokens())
    before = bytes_of(layer)
    other = copy.deepcopy(layer)
    train_step(other, tokens(seed=4))
    assert unchanged(layer, before)
    assert not unchanged(other, before)
    assert (layer.dictionary.writes, other.dictionary.writes) == (1, 2)


def test_it_moves_to_float64(layer):
    train_step(layer, tokens())
    single = layer.eval()(tokens())[0]
    layer.double().train()
    assert layer.dictionary.keys.dtype == torch.float64
    assert layer.dictionary.counts.dtype == torch.int64
    train_step(layer, tokens(seed=5).double())
    assert layer.dictionary.state.keys.dtype == torch.float64
    assert layer.dictionary.state.tokens.tolist() == [24]
    layer.dictionary.load_state_dict({name: t.clone() for name, t in layer.dictionary.state_dict().items()})
    assert single.dtype == torch.float32


def test_reset_empties_it_and_what_was_recorded(layer):
    empty = bytes_of(layer)
    train_step(layer, tokens())
    with layer.dictionary.recording():
        layer(tokens())
    layer.dictionary.reset()
    with pytest.raises(UserError, match="nothing to write"):
        layer.dictionary.write()
    empty["dictionary.writes" if "dictionary.writes" in empty else "writes"] += 1  # the count of writes goes on
    assert unchanged(layer, empty)


def test_passes_recorded_before_a_write_are_one_update(layer):
    """Gradients may be accumulated over several passes of one step, of unlike lengths."""
    whole = copy.deepcopy(layer)
    layer.train()
    first, second = tokens(length=3), tokens(length=4)
    with layer.dictionary.recording():
        layer(first)
        layer(second)
    layer.dictionary.write()
    with torch.no_grad():
        parts = [whole.qkv(x).flatten(0, 1) for x in (first, second)]
        _, k, v = torch.cat(parts).view(1, -1, 3, HEADS, WIDTH // HEADS).unbind(2)
        expected, _ = update(whole.dictionary.state, k, v, OPTIONS)
    assert layer.dictionary.writes == 1
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(getattr(layer.dictionary, name), tensor)


def test_the_write_log_says_which_task_wrote_what_and_when(layer):
    written = []
    for task in (0, 2):
        layer.dictionary.begin_task(task)
        before = layer.dictionary.state.counts[0]
        train_step(layer, tokens(seed=task))
        written.append(layer.dictionary.state.counts[0] - before)
    log = layer.dictionary.written
    assert len(log) == 3
    assert torch.equal(log[0], written[0])
    assert not log[1].any()
    assert torch.equal(log[2], written[1])
    expected = torch.where(written[1] > 0, 2, torch.where(written[0] > 0, 1, 0))
    assert torch.equal(layer.dictionary.last_write, expected)


def test_the_write_log_follows_slots_that_unite():
    options = DictionaryOptions(capacity=6, chunk_size=4, growth="recycle")
    torch.manual_seed(0)
    layer = OVQAttention(width=WIDTH, heads=HEADS, options=options, persistent=True, sums=True)
    alive = torch.zeros(HEADS, 6, dtype=torch.int64)  # the last write of a token of each slot, by hand
    for task in range(6):
        layer.dictionary.begin_task(task)
        before = layer.dictionary.state
        with layer.dictionary.recording():
            layer(tokens(batch=1, seed=task))
        (k, v, mask), *_ = layer.dictionary._recorded
        _, slots, united = write(before, k, v, options, mask)
        layer.dictionary.write()
        for head in range(HEADS):
            for slot, kept in zip(slots[0, :, head].tolist(), united[0, :, head].tolist(), strict=True):
                if kept >= 0:
                    alive[head, kept] = max(alive[head, kept], alive[head, slot])
            alive[head, slots[0, :, head]] = task + 1
    state, log = layer.dictionary.state, layer.dictionary.written
    assert torch.equal(log.sum(-1), torch.full((6, HEADS), 4))
    assert torch.equal(log.sum(0), state.counts[0])
    torch.testing.assert_close(layer.dictionary.key_sums.sum(0), state.keys[0] * state.counts[0][..., None])
    assert torch.equal(layer.dictionary.last_write, alive)


def test_a_write_log_of_several_tasks_loads_into_a_new_layer(layer):
    layer.dictionary.begin_task(3)
    train_step(layer, tokens())
    other = OVQAttention(width=WIDTH, heads=HEADS, options=OPTIONS, persistent=True, dictionary_weight=None)
    other.load_state_dict(layer.state_dict())
    assert unchanged(other, bytes_of(layer))


def weighted(weight):
    torch.manual_seed(0)
    return OVQAttention(width=WIDTH, heads=HEADS, options=OPTIONS, persistent=True, dictionary_weight=weight)


def test_a_weighted_dictionary_counts_for_as_many_tokens_whatever_was_written():
    """Writing the same tokens again doubles every count and moves no mean: a dictionary without weight gains some."""
    x = tokens()
    for weight, same in ((3.0, True), (None, False)):
        layer = weighted(weight)
        train_step(layer, x)
        state = layer.dictionary.state
        once = layer(tokens(seed=1))[0]
        layer.dictionary.state = state.replace(counts=2 * state.counts, tokens=2 * state.tokens)
        twice = layer(tokens(seed=1))[0]
        assert torch.allclose(once, twice, atol=1e-6) == same


def test_the_weight_is_that_many_tokens():
    """Twelve tokens written, weighted as twelve, are read as the definition reads them."""
    x, query = tokens(), tokens(seed=1)
    plain, equal = weighted(None), weighted(12.0)
    for layer in (plain, equal):
        train_step(layer, x)
    assert int(plain.dictionary.state.tokens) == 12
    torch.testing.assert_close(equal(query)[0], plain(query)[0])


def test_the_weight_is_learned():
    layer = weighted(2.0)
    train_step(layer, tokens())
    layer(tokens(seed=1))[0].square().sum().backward()
    assert layer.log_weight.grad.abs().min() > 0


def test_without_a_shared_dictionary_there_is_no_weight():
    layer = OVQAttention(width=WIDTH, heads=HEADS, options=OPTIONS, dictionary_weight=2.0)
    assert layer.log_weight is None


class TestWriting:
    """One's own training loop: a block is a step, and a step one write."""

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        options = DictionaryOptions(capacity=8, chunk_size=4)
        return torch.nn.Sequential(
            *(
                OVQOnly(OVQAttention(width=8, heads=2, options=options, persistent=True, dictionary_weight=None))
                for _ in "12"
            )
        )

    def test_a_step_of_two_passes_is_one_write_of_every_layer(self, model):
        with writing(model):
            loss = model(torch.randn(3, 4, 8)).sum() + model(torch.randn(3, 4, 8)).sum()
            loss.backward()
            assert not any(dictionary.writes for dictionary in dictionaries(model).values())
        for dictionary in dictionaries(model).values():
            assert dictionary.writes == 1
            assert dictionary.written.sum() == 2 * 2 * 3 * 4  # heads, passes, sequences, tokens

    def test_evaluation_writes_nothing(self, model):
        before = copy.deepcopy(model.state_dict())
        with writing(model.eval()):
            model(torch.randn(3, 4, 8))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_a_step_that_fails_writes_nothing_now_or_later(self, model):
        with contextlib.suppress(ZeroDivisionError), writing(model):
            model(torch.randn(3, 4, 8))
            _ = 1 / 0
        with writing(model):
            model(torch.randn(1, 4, 8))
        assert all(dictionary.written.sum() == 2 * 4 for dictionary in dictionaries(model).values())


class OVQOnly(torch.nn.Module):
    """A mixer's outputs without its state."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer(x)[0]
