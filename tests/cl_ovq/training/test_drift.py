"""Remedies against drift: what is frozen stays, and what is refreshed is what the encoder would write now."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.errors import UserError
from cl_ovq.mixers import dictionaries
from cl_ovq.runs.checking import check_config
from cl_ovq.training.memory_usage import replay_buffers
from kernels import DictionaryState, update
from streams import rows_of


def encoder(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("head.")}


class Watch(SupervisedPlugin):
    """Keeps the encoder's weights as they are when training starts and after each experience."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def before_training(self, strategy, **kwargs):
        if not self.weights:
            self.weights.append(encoder(strategy.model))

    def after_training_exp(self, strategy, **kwargs):
        self.weights.append(encoder(strategy.model))


def moved(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize(
    ("choice", "moves"), [("always", (True, True)), ("first_experience", (True, False)), ("never", (False, False))]
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_encoder_moves_only_when_it_may(session, choice, moves, optimizer):
    trained, watch = (
        session(f"model.train_encoder={choice}", f"optimizer.name={optimizer}", "optimizer.weight_decay=0.1"),
        Watch(),
    )
    head = trained.model.head.weight.detach().clone()
    trained.learn(watch)
    start, first, second = watch.weights
    assert (bool(moved(start, first)), bool(moved(first, second))) == moves
    assert not torch.equal(trained.model.head.weight, head)


def test_a_memory_beside_a_frozen_encoder_has_no_linear_head(session):
    assert session("model.train_encoder=never", "model.head=memory").model.head.linear is None
    assert session("model.train_encoder=first_experience", "model.head=memory").model.head.linear is not None


def test_refreshed_entries_are_the_buffer_as_the_encoder_sees_it_now(session):
    trained = session("dictionary.refresh=true", "strategy.batch_size=8", "model.depth=1")
    trained.learn()
    (dictionary,) = dictionaries(trained.model).values()
    (buffer,) = replay_buffers(trained.strategy)
    rows = rows_of(buffer)
    experiences = [set(rows_of(e.dataset).tolist()) for e in trained.train]
    mixer = trained.model.blocks[0].mixer
    seen = []
    mixer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    state = DictionaryState.empty((1, *dictionary.state.keys.shape[1:], dictionary.state.values.shape[-1]))
    for task, members in enumerate(experiences):
        mine = torch.tensor([row for row in rows.tolist() if row in members])
        assert int(dictionary.written[task].sum(-1)[0]) == 4 * len(mine)
        for part in mine.split(8):
            with torch.no_grad():
                trained.model.eval()(trained.stream.samples.gather(part))
                _, k, v = mixer.qkv(seen[-1]).unflatten(-1, (3, mixer.heads, -1)).unbind(2)
                state, _ = update(state, k, v, dictionary.options)
    for name, tensor in state.state_dict().items():
        torch.testing.assert_close(getattr(dictionary, name), tensor)


def test_refreshing_leaves_training_on_as_it_was(session):
    trained, modes = session("dictionary.refresh=true"), []

    class Mode(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            modes.append(strategy.model.training)

    trained.learn(Mode())
    assert len(modes) > 20
    assert all(modes)
    assert all(d.task == 1 for d in dictionaries(trained.model).values())


def test_what_does_not_fit_together_is_said(tiny):
    with pytest.raises(UserError, match=r"dictionary.refresh: strategy.name=naive has no replay buffer"):
        check_config(tiny("strategy.name=naive", "dictionary.refresh=true"))
    with pytest.raises(UserError, match=r"dictionary.sums: needs"):
        check_config(tiny("dictionary.sums=true", "dictionary.half_life=100"))
