"""The replay buffer holds no more than it may, and only what came before."""

import pytest
from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.training.memory_usage import replay_samples


class Buffers(SupervisedPlugin):
    """Notes the buffer's classes when an experience begins, and how many new and old samples each step has."""

    def __init__(self):
        super().__init__()
        self.before = []
        self.steps = []

    def before_training_exp(self, strategy, **kwargs):
        (buffer,) = (plugin.storage_policy.buffer for plugin in strategy.plugins if hasattr(plugin, "storage_policy"))
        self.before.append([int(target) for target in buffer.targets] if len(buffer) else [])

    def before_training_iteration(self, strategy, **kwargs):
        new = {int(label) for label in strategy.experience.classes_in_this_experience}
        old = sum(int(label) not in new for label in strategy.mb_y)
        self.steps.append((strategy.experience.current_experience, len(strategy.mb_y) - old, old))


@pytest.mark.parametrize("policy", ["class_balanced", "experience_balanced", "reservoir"])
@pytest.mark.parametrize("buffer_size", [1, 7, 40])
def test_buffer(session, policy, buffer_size):
    trained = session(
        f"strategy.buffer_policy={policy}",
        f"strategy.buffer_size={buffer_size}",
        "strategy.buffer_batch_size=16",
        "stream.experiences=5",
        "model.mixer=softmax",
        "model.depth=1",
    )
    buffers = Buffers()
    trained.learn(buffers)
    classes = trained.stream.classes_per_experience
    for experience, held in enumerate(buffers.before):
        past = {label for part in classes[:experience] for label in part}
        assert len(held) == (buffer_size if experience else 0)
        assert set(held) <= past
        groups = {"class_balanced": [(label,) for label in past], "experience_balanced": classes[:experience]}
        shares = [sum(held.count(label) for label in group) for group in groups.get(policy, [])]
        assert not shares or max(shares) - min(shares) <= 1
    assert replay_samples(trained.strategy) == buffer_size
    for experience, new, old in buffers.steps:
        assert (0 < old <= min(16, buffer_size)) if experience else old == 0
        assert 0 < new <= 32
