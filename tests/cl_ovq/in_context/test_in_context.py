"""A learner whose weights rest: what it is given, what it keeps, and where its weights come from."""

import copy
import hashlib
import io
import pickle

import numpy as np
import pytest
import torch
from quick_settings import built
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.in_context import WEIGHTS, build_learner, deciding, weights, write_weights
from cl_ovq.in_context.head import InContextHead
from cl_ovq.in_context.learner import InContextLearner
from cl_ovq.in_context.standardisation import projection_of, standardise, statistics_of
from cl_ovq.in_context.weight_files import read_weights
from cl_ovq.mixers import MIXERS, build_mixers
from cl_ovq.mixers.state import tensors_of
from cl_ovq.models.saving import load_model, save_model
from cl_ovq.runs.reevaluate import trained_model
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from streams.gaussian_classes import MODES, GaussianClasses

F, C = 12, 4  # features, classes


def configured(mixer, **changes):
    """The sections of a small learner."""
    sizes = {"width": 16, "heads": 2, "depth": 2, "features": 8, "code": 6, "steps": 2, "episodes": 2, **changes}
    dictionary = {"scope": "sequence", "capacity": 6, "chunk_size": 4, "growth": "recycle", "value_weight": 1.0}
    config = built(
        model={"name": "pixels"},
        strategy={"name": "in_context"},
        learner={"mixer": mixer, **sizes},
        dictionary=dictionary,
    )
    return config.learner, config.dictionary


def learner_of(mixer, **changes):
    options, dictionary = configured(mixer, **changes)
    torch.manual_seed(0)
    mixers = build_mixers(options, dictionary)
    return InContextLearner(features=8, code=6, width=16, mixers=mixers, hidden=32).eval()


def head_of(mixer, **changes):
    return InContextHead(features=F, classes=C, learner=learner_of(mixer, **changes), seed=3)


def samples(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, F, generator=g), torch.randint(0, C, (count,), generator=g)


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_scores_are_what_the_learner_tells_of_the_whole_sequence(mixer):
    """Whatever the batches; by one pass over all samples and the query, without any state."""
    head = head_of(mixer)
    x, y = samples(21)
    queries, _ = samples(5, seed=1)
    head.begin(x[:9])
    for part in range(0, 21, 7):
        head.observe(x[part : part + 7], y[part : part + 7])
    tokens = torch.cat([x[None].expand(5, -1, -1), queries[:, None]], 1)
    tokens = torch.nn.functional.normalize((tokens - head.mean) / head.deviation @ head.projection, dim=-1)
    codes = torch.cat([head.codes[y], torch.zeros(1, 6)]).expand(5, -1, -1)
    told, _ = head.learner(tokens, codes)
    expected = head.learner.logits(told[:, -1], head.codes)
    with torch.no_grad():
        found = head(queries)
    expected = expected.masked_fill(head.seen == 0, -torch.inf)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("origin", [1e3, 1e4])
def test_what_all_features_have_in_common_changes_no_answer(origin):
    (x, y), (queries, _) = samples(40), samples(200, seed=1)
    x, queries = x + origin, queries + origin
    far, near = head_of("ovq"), head_of("ovq")
    far.observe(x, y)
    near.observe(x - origin, y)  # a difference without rounding
    with torch.no_grad():
        found, expected = far(queries).argmax(1), near(queries - origin).argmax(1)
    assert len(expected.unique()) > 1
    assert (found == expected).float().mean() > 0.98


@pytest.mark.parametrize("scale", [2.0**-70, 2.0**70])
def test_how_large_all_features_are_changes_no_answer(scale):
    (x, y), (queries, _) = samples(40), samples(50, seed=1)
    one, other = head_of("ovq"), head_of("ovq")
    one.observe(x, y)
    other.observe(scale * x, y)
    with torch.no_grad():
        torch.testing.assert_close(other(scale * queries), one(queries))


@pytest.mark.parametrize("mixer", ["ovq", "softmax", "linear"])
def test_asking_changes_nothing_and_does_not_depend_on_company(mixer):
    head = head_of(mixer)
    head.observe(*samples(11))
    before = copy.deepcopy(head.state_dict())
    queries, _ = samples(9, seed=1)
    whole = head(queries)
    alone = torch.cat([head(query[None]) for query in queries.flip(0)]).flip(0)
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)
    assert before.keys() == head.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("mixer", ["ovq", "softmax", "mamba2"])
def test_it_goes_on_from_what_was_saved(mixer):
    head, other = head_of(mixer), head_of(mixer)
    head.observe(*samples(13))
    other.observe(*samples(5, seed=7))  # of another length, and to be forgotten
    other.load_state_dict(head.state_dict())
    for one in (head, other):
        one.observe(*samples(6, seed=2))
    queries, _ = samples(9, seed=1)
    assert torch.equal(head(queries), other(queries))
    fresh = head_of(mixer)
    other.load_state_dict(fresh.state_dict())
    assert other.states is None
    assert other.tokens == 0
    twin = copy.deepcopy(head)
    twin.observe(*samples(6, seed=3))
    assert twin.tokens == head.tokens + 6


def test_longer_streams_are_read_more_sharply():
    plain, scaled = head_of("ovq", depth=1), head_of("ovq", depth=1)
    scaled.learner.log_length_scaling = True
    queries, _ = samples(5, seed=1)
    for head in (plain, scaled):
        head.learner.trained_length.fill_(10)
        head.observe(*samples(10))
    assert torch.equal(plain(queries), scaled(queries))
    for head in (plain, scaled):
        head.observe(*samples(30, seed=4))
    for block in plain.learner.blocks:  # one layer: its state is the same, and temperature works on reading alone
        block.mixer.log_beta.data += np.log(np.log(40) / np.log(10))
    torch.testing.assert_close(scaled(queries), plain(queries))


def test_no_weight_changes_and_bytes_are_those_of_the_state():
    head = head_of("ovq")
    before = copy.deepcopy(dict(head.learner.named_parameters()))
    assert not any(parameter.requires_grad for parameter in head.parameters())
    head.observe(*samples(50))
    assert all(torch.equal(before[name], tensor) for name, tensor in head.learner.named_parameters())
    # Two layers, heads of 8 features: counts, key and value means, size and tokens; an open chunk of 50 % 4 tokens.
    layer = 2 * 6 * 8 + 2 * (2 * 6 * 8 * 4) + 2 * 8 + 8 + 2 * (2 * 2 * 8 * 4) + 2
    assert head.nbytes == 2 * layer + C * 8 + 2 * F * 4
    assert [int(state.size.max()) for state in head.dictionaries] == [6, 6]


def test_statistics_and_standardisation():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.0, 1e-6, 30.0]) + 7
    mean, deviation = (np.asarray(part)[0] for part in statistics_of(x))
    variance = x.numpy().astype(np.float64).var(0)
    np.testing.assert_allclose(mean, x.numpy().mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, np.sqrt(variance + variance.mean()), rtol=1e-4)
    found = standardise(x, *statistics_of(x))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(200))
    torch.testing.assert_close(standardise(3 * x - 4, *statistics_of(3 * x - 4)), found, atol=1e-4, rtol=1e-3)
    constant = torch.ones(4, 5)
    assert standardise(constant, *statistics_of(constant)).isfinite().all()


@pytest.mark.parametrize(("features", "size"), [(12, 8), (8, 8), (5, 8)])
def test_projections_keep_what_they_can(features, size):
    projection = projection_of(features, size, torch.Generator().manual_seed(0))
    if features == size:
        assert projection is None
    elif features > size:
        torch.testing.assert_close(projection.T @ projection, torch.eye(size))
    else:
        x = torch.randn(7, features)
        torch.testing.assert_close((x @ projection)[:, :features], x)


def test_synthetic_classes_are_what_they_are_said_to_be():
    """Means and covariances of many samples of one class, against the formula."""
    g = torch.Generator().manual_seed(0)
    drawn = GaussianClasses.draw(2, 3, 6, g)
    x = drawn.samples(torch.full((2, 60_000), 1), g).double()
    for episode in range(2):
        a, modes = drawn.mixing[episode].double(), drawn.modes[episode, 1].double()
        torch.testing.assert_close(x[episode].mean(0), a @ modes.mean(0), atol=0.1, rtol=0.05)
        within = torch.cov(modes.T, correction=0) + drawn.noise[episode].double() ** 2 * torch.eye(6)
        expected = a @ within @ a.T
        assert float((torch.cov(x[episode].T) - expected).norm() / expected.norm()) < 0.05
    assert drawn.modes.shape == (2, 3, MODES, 6)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cl-ovq" / "learners"


def test_weights_are_learned_once(cache, monkeypatch):
    options, dictionary = configured("ovq")
    state = torch.get_rng_state()
    learner = build_learner(options, dictionary, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(list(cache.glob("*.pt"))) == 1
    monkeypatch.setattr(weights, "pretrain", None)  # an error, if it were called
    again = build_learner(options, dictionary, 5)
    assert all(torch.equal(x, y) for x, y in zip(learner.parameters(), again.parameters(), strict=True))
    for changed in ({"steps": 3}, {"width": 32}):
        with pytest.raises(TypeError):
            build_learner(*configured("ovq", **changed), 5)
    with pytest.raises(TypeError):
        build_learner(options, dictionary, 6)


def test_weights_from_a_file(cache, tmp_path):
    options, dictionary = configured("ovq")
    learner = build_learner(options, dictionary, 5)
    path = tmp_path / "learner.pt"
    write_weights(learner, path, deciding(options, dictionary), 5)
    own = built(
        model={"name": "pixels"},
        strategy={"name": "in_context"},
        learner={
            "mixer": "ovq",
            "width": 16,
            "heads": 2,
            "depth": 2,
            "features": 8,
            "code": 6,
            "weights": "file",
            "path": str(path),
        },
        dictionary={"scope": "sequence", "capacity": 6, "chunk_size": 4, "growth": "recycle", "value_weight": 1.0},
    )
    again = build_learner(own.learner, own.dictionary, 0)
    assert all(torch.equal(x, y) for x, y in zip(learner.parameters(), again.parameters(), strict=True))
    own.dictionary.capacity = 7  # no weight is made for it
    build_learner(own.learner, own.dictionary, 0)
    own.learner.width = 32
    with pytest.raises(UserError, match=r"^learner\.width: 32, but the weights in .* were trained with 16$"):
        build_learner(own.learner, own.dictionary, 0)
    own.learner.width = 16
    own.learner.path = str(tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"^learner: .*none\.pt: cannot be read \(No such file"):
        build_learner(own.learner, own.dictionary, 0)
    own.learner.path = None
    with pytest.raises(UserError, match=r"^learner\.path is missing"):
        build_learner(own.learner, own.dictionary, 0)


class Evil:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"sections": {}, "weights": Evil()}), None])
def test_a_file_that_is_none_is_one_line_and_runs_nothing(cache, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    if content is None:
        torch.save({"sections": {}, "weights": {"other": torch.zeros(1)}}, path)
    else:
        path.write_bytes(content)
    options, dictionary = configured("linear")
    learner = learner_of("linear")
    with pytest.raises(UserError, match=r"^learner: .*bad\.pt") as refusal:
        read_weights(learner, path, deciding(options, dictionary))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_cache_is_learned_anew(cache):
    options, dictionary = configured("ovq")
    learner = build_learner(options, dictionary, 5)
    (path,) = cache.glob("*.pt")
    path.write_bytes(b"damaged")
    again = build_learner(options, dictionary, 5)
    assert all(torch.equal(x, y) for x, y in zip(learner.parameters(), again.parameters(), strict=True))
    read_weights(again, path, deciding(options, dictionary))


def test_other_weights_in_the_same_file_are_another_run(cache, tmp_path):
    path = tmp_path / "learner.pt"

    def config(*overrides):
        plain = ("tracking.enabled=false", "figures=false", f"output_dir={tmp_path / 'run'}", "evaluation.stop_after=1")
        file = ("learner.weights=file", f"learner.path={path}")
        return load_config("in_context_digits", (*plain, *file, *overrides))

    def write(seed):
        own = load_config("in_context_digits", ("learner.weights=gaussian_classes", "learner.steps=1"))
        learner = build_learner(own.learner, own.dictionary, seed)
        write_weights(learner, path, deciding(own.learner, own.dictionary), seed)

    assert config().learner.sha256 is None  # there is no file yet
    write(0)
    first = config()
    assert first.learner.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    run_experiment(first, Console(file=io.StringIO()))
    write(1)
    with pytest.raises(UserError, match=r"learner\.sha256"):
        run_experiment(config(), Console(file=io.StringIO()), resume=True)
    with pytest.raises(UserError, match="differs from the run's weights: sha256 is"):
        build_learner(first.learner, first.dictionary, 0)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["learner.heads=3"], "learner.heads: 3 heads do not divide learner.width=128"),
        (["learner.pattern=[]"], "learner.pattern: is empty"),
        (["learner.key_value_heads=3"], "learner.key_value_heads: 3 does not divide"),
        (["dictionary.scope=stream"], "dictionary.scope: in_context carries dictionaries"),
        (
            ["learner.mixer=linear"],
            "learner.log_length_scaling: has no effect on linear: it applies to .*ovq",
        ),
        (["learner.mixer=softmax"], "learner.mixer: softmax, but the weights in .* were trained with ovq"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, monkeypatch, overrides, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{line}"):
        run_experiment(load_config("in_context_digits", overrides), Console(file=io.StringIO()))
    assert not list(tmp_path.rglob("*.json"))


def test_a_logged_model_is_the_trained_one(tmp_path):
    overrides = ("tracking.enabled=false", "figures=false", f"output_dir={tmp_path / 'run'}", "evaluation.stop_after=2")
    result = run_experiment(load_config("in_context_digits", overrides), Console(file=io.StringIO()))
    stream, trained = load_stream(load_config("in_context_digits", overrides)), trained_model(result.output_dir)
    config = load_config("in_context_digits", overrides)
    save_model(tmp_path / "model.pt", trained, config, stream)
    x = stream.samples.gather(torch.arange(7))
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model.pt").model(x), trained(x))
    # The dictionaries are counted once: keys, values, counts of their slots, and what waits for a chunk's end.
    head, carried = trained.head.memory, result.provenance
    state = sum(tensor.nbytes for tensor in tensors_of(head.states))
    counted = head.counts.nbytes + head.mean.nbytes + head.deviation.nbytes
    assert carried["dictionary_bytes"] + carried["method_bytes"] == carried["memory_bytes"]
    assert carried["memory_bytes"] == pytest.approx(state + counted, abs=64)  # numbers of the state are no tensors


def test_the_weights_that_come_with_the_package_learn_digits(tmp_path):
    """In one pass, without gradients; held to the table in `docs/in_context.md` less three of its intervals."""
    overrides = [
        f"output_dir={tmp_path / 'run'}",
        "tracking.enabled=false",
        "figures=false",
        "checkpoint.enabled=false",
    ]
    result = run_experiment(load_config("in_context_digits", overrides), Console(file=io.StringIO()))
    assert result.metrics["accuracy"] > 0.88
    assert result.metrics["forgetting"] < 0.12
    assert all(row[index] > 0.85 for index, row in enumerate(result.matrix[1:]))  # each experience when it was learned


def test_every_source_of_weights_is_listed():
    assert list(WEIGHTS) == ["gaussian_classes", "sine", "features", "pretrained", "file"]
