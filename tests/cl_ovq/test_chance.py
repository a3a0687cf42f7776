"""Every source of chance follows from the run's seed: another seed draws other numbers, the same seed the same ones.

Each source is looked at alone, in what it decides; what is meant to be the same for all seeds is at the end.
"""

import functools

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.config import load_config
from cl_ovq.mixers import MIXERS
from cl_ovq.models import build_model
from cl_ovq.runs.setup import load_stream
from cl_ovq.training import penalties, seed_everything
from streams import rows_of

SEQUENCES = """
stream: {name: recall, experiences: 2, shift: none, length: 24, pairs: 3, train: 40, validation: 8, test: 8}
model: {name: sequence_model, width: 16, depth: 1, heads: 2}
strategy: {batch_size: 20}
tracking: {enabled: false}
"""
NATURAL = "stream.shuffle_classes=false"


def data(tensor):
    return tensor.detach().cpu().numpy().tobytes()


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    path = tmp_path_factory.mktemp("sequences") / "sequences.yaml"
    path.write_text(SEQUENCES)
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture(scope="module")
def stream(tiny, sequences):
    """`stream(seed, *overrides)`: a stream of images, or of sequences where `stream.name` is one of those."""

    @functools.cache
    def build(seed, *overrides):
        images = not overrides or overrides[0].endswith("_digits")
        return load_stream((tiny if images else sequences)(f"seed={seed}", *overrides))

    return build


def rows(stream, split, experience=0):
    return data(rows_of(stream.benchmark.streams[split][experience].dataset))


def inputs(stream, split):
    chosen = rows_of(stream.benchmark.streams[split][0].dataset)
    return data(stream.samples.inputs[chosen])


def assert_drawn(decide):
    """Check that two seeds differ in what `decide(seed)` returns, and that a seed agrees with itself."""
    first = decide(1)
    assert decide(1) == first
    assert decide(2) != first


TEXT = ("stream.name=text", "stream.domains=[licences, headers]", "stream.limit=20000", "stream.train=20")
STREAMS = {
    "order of the classes": lambda build: build("stream.name=split_digits", "stream.experiences=5").original_classes,
    "permutation of the pixels": lambda build: data(build("stream.name=permuted_digits").samples.maps),
    "blurred boundary": lambda build: rows(build("stream.name=split_digits", NATURAL, "stream.blur=0.5"), "train"),
    "blurred boundary, rotated": lambda build: rows(build("stream.name=rotated_digits", "stream.blur=0.5"), "train"),
    "blurred boundary, sequences": lambda build: rows(build("stream.name=recall", "stream.blur=0.5"), "train"),
    "needles": lambda build: inputs(build("stream.name=needle", "stream.length=64"), "train"),
    "windows of text": lambda build: inputs(build(*TEXT), "train"),
    **{
        f"{split} sequences of {name}": lambda build, name=name, split=split: inputs(
            build(f"stream.name={name}"), split
        )
        for name in ("recall", "positional_recall", "rebinding", "regression")
        for split in ("train", "validation", "test")
    },
    "sequences of other lengths": lambda build: data(build("stream.name=recall").at_length(48, 8, "test").inputs),
}


@pytest.mark.parametrize("source", STREAMS)
def test_streams(stream, source):
    assert_drawn(lambda seed: STREAMS[source](lambda *overrides: stream(seed, *overrides)))


MODELS = {
    **{name: ("stream.name=recall", f"model.mixer={name}") for name in MIXERS},
    "patch_transformer": (),
    "mlp": ("model.name=mlp",),
    "random_features": ("model.name=random_features", "model.head=memory", "strategy.name=naive"),
    "random_convolution": ("model.name=random_convolution", "model.head=memory", "strategy.name=naive"),
}


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights(tiny, sequences, name):
    overrides = MODELS[name]

    def weights(seed):
        config = (sequences if "stream.name=recall" in overrides else tiny)(f"seed={seed}", *overrides)
        seed_everything(config.seed, "model")
        return {key: value.clone() for key, value in build_model(config, load_stream(config)).state_dict().items()}

    first, again, other = weights(1), weights(1), weights(2)
    assert {key: data(value) for key, value in first.items()} == {key: data(value) for key, value in again.items()}
    first.pop("head.memory.chosen", None)  # settings of the read-out
    drawn = [key for key, value in first.items() if value.is_floating_point() and len(value.unique()) > 1]
    assert drawn
    assert [key for key in drawn if torch.equal(first[key], other[key])] == []


class Watch(SupervisedPlugin):
    """Keeps what `look(strategy)` returns after every training step."""

    def __init__(self, look):
        super().__init__()
        self.look = look
        self.seen = []

    def after_training_iteration(self, strategy, **kwargs):
        self.seen.append(self.look(strategy))


def batch_rows(strategy):
    return data(strategy.dataloader.rows)


def replayed_rows(strategy):
    """The rows of the batch that are not of the experience."""
    new = set(rows_of(strategy.experience.dataset).tolist())
    return [row for row in strategy.dataloader.rows.tolist() if row not in new]


def replayed_positions(strategy):
    """The places in the memory of what the step replays."""
    return [] if strategy.replayed is None else strategy.replayed.positions.tolist()


def buffer_rows(strategy):
    (policy,) = (plugin.storage_policy for plugin in strategy.plugins if hasattr(plugin, "storage_policy"))
    return sorted(rows_of(policy.buffer).tolist())


def memory_of(strategy):
    holders = [strategy, *strategy.plugins]
    return next(holder.memory for holder in holders if hasattr(holder, "memory"))


def memory_rows(strategy):
    return memory_of(strategy).rows.tolist()


def memory_order(strategy):
    """The order in which batches are drawn from a memory."""
    return memory_of(strategy).order.tolist()


# What is looked at in each step, and the settings.
TRAINING = {
    "batches": (batch_rows, ["strategy.name=naive"]),
    "batches of a joint stream": (batch_rows, ["strategy.name=joint"]),
    **{
        f"what {policy} keeps": (buffer_rows, ["strategy.name=replay", f"strategy.buffer_policy={policy}"])
        for policy in ("class_balanced", "experience_balanced", "reservoir")
    },
    "what gdumb keeps": (buffer_rows, ["strategy.name=gdumb"]),
    **{
        f"what {name} keeps": (memory_rows, [f"strategy.name={name}"])
        for name in ("gem", "agem", "der", "er_ace", "mir")
    },
    "batches of past samples of agem": (memory_order, ["strategy.name=agem", "strategy.buffer_batch_size=5"]),
    "samples that replay adds": (replayed_rows, ["strategy.name=replay", "strategy.buffer_batch_size=5"]),
    **{
        f"samples that {name} adds": (replayed_positions, [f"strategy.name={name}", "strategy.buffer_batch_size=5"])
        for name in ("der", "derpp", "er_ace", "mir")
    },
}


@pytest.mark.parametrize("source", TRAINING)
def test_training(session, source):
    look, overrides = TRAINING[source]

    def seen(seed):
        watch = Watch(look)
        session(f"seed={seed}", NATURAL, "model.name=mlp", "strategy.batch_size=100", *overrides).learn(watch)
        assert any(watch.seen)
        return watch.seen

    assert_drawn(seen)


def with_the_weights_of_seed_1(session, seed, *overrides):
    """A model in training mode with the weights of seed 1, and a batch: what differs is the chance of training."""
    made = session(f"seed={seed}", NATURAL, "strategy.name=naive", *overrides)
    made.model.load_state_dict(session("seed=1", NATURAL, "strategy.name=naive", *overrides).model.state_dict())
    seed_everything(made.config.seed, "training")
    return made.model.train(), made.stream.samples.gather(torch.arange(8))


def test_dropout(session):
    def outputs(seed):
        model, batch = with_the_weights_of_seed_1(session, seed, "model.mixer=softmax", "model.dropout=0.5")
        return data(model(batch))

    assert_drawn(outputs)


def test_codes_that_start_again(session):
    def codes(seed):
        model, batch = with_the_weights_of_seed_1(session, seed, "model.mixer=vq", "model.codebook_size=40")
        model(batch)
        return [data(value) for name, value in model.state_dict().items() if name.endswith("codebook")]

    assert_drawn(codes)


class Recorded:
    """Samples that keep which rows were asked for."""

    def __init__(self, samples):
        self.samples, self.targets = samples, samples.targets
        self.asked = []

    def gather(self, rows):
        self.asked += rows.tolist()
        return self.samples.gather(rows)


@pytest.mark.parametrize("name", ["ewc", "online_ewc", "mas"])
def test_samples_of_importance(session, name):
    def asked(seed):
        settings = (
            f"strategy.name={name}",
            "model.name=mlp",
            "strategy.importance_samples=3",
            "strategy.batch_size=100",
        )
        made = session(f"seed={seed}", NATURAL, *settings)
        (penalty,) = (plugin for plugin in made.strategy.plugins if hasattr(plugin, "importance"))
        penalty.samples = Recorded(penalty.samples)
        made.learn()
        assert len(penalty.samples.asked) == 3 * len(made.train)
        return penalty.samples.asked

    assert_drawn(asked)


@pytest.mark.parametrize("shape", [(6, 10), (6,)], ids=["classes", "values"])
def test_targets_of_the_fisher_information(shape):
    def drawn(seed):
        seed_everything(seed, "training")
        outputs = torch.zeros(shape, requires_grad=True)
        penalties._log_likelihood(outputs).backward()
        return data(outputs.grad)

    assert_drawn(drawn)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("name", ["split_digits", "rotated_digits"])
def test_samples_held_out_of_images_are_the_same_for_all_seeds(stream, name, split):
    overrides = (f"stream.name={name}", *([NATURAL] if name == "split_digits" else []))
    assert rows(stream(1, *overrides), split) == rows(stream(2, *overrides), split)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_text_held_out_is_the_same_for_all_seeds(stream, split):
    assert inputs(stream(1, *TEXT), split) == inputs(stream(2, *TEXT), split)
    at_length = [data(stream(seed, *TEXT).at_length(100, 4, split).inputs) for seed in (1, 2)]
    assert at_length[0] == at_length[1]
