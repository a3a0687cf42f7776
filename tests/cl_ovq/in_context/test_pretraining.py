"""Episodes that weights are learned on, and how they are learned: on synthetic classes and on those of a file."""

import dataclasses
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_digits

from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.in_context import build_learner, weights
from cl_ovq.in_context.episodes import DrawnFromData, EpisodeOptions, gaussian_episodes
from cl_ovq.in_context.learner import InContextLearner, random_codes
from cl_ovq.in_context.pretraining import _class_loss, pretrain
from cl_ovq.in_context.weights import bare_learner
from cl_ovq.mixers import SoftmaxAttention
from cl_ovq.runs.reevaluate import trained_model
from cl_ovq.runs.run import run_experiment
from streams.cache import alone


def test_episodes_ask_for_all_tasks_and_are_the_same_for_a_seed():
    options = EpisodeOptions(episodes=3, tasks=4, samples=5, questions=30)
    for seed in range(5):
        episodes, again = (gaussian_episodes(8)(options, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert torch.equal(episodes.x, again.x)
        tasks, s = episodes.classes // 2, episodes.samples
        of_task = episodes.labels[:, :s].reshape(3, tasks, -1) // 2
        assert torch.equal(of_task, torch.arange(tasks)[:, None].expand_as(of_task))
        for row in episodes.labels[:, :s]:
            assert (row.bincount(minlength=episodes.classes) * episodes.classes == s).all()
        assert set(episodes.labels[:, s:].flatten().tolist()) == set(range(episodes.classes))


def test_pretraining_teaches_classes_that_were_never_seen():
    options = EpisodeOptions(steps=300, tasks=1, samples=5, learning_rate=5e-3)
    torch.manual_seed(0)
    mixers = [SoftmaxAttention(width=64, heads=1)]
    learner, told = InContextLearner(features=8, code=16, width=64, mixers=mixers, hidden=64), []
    pretrain(
        learner,
        options,
        torch.Generator().manual_seed(0),
        gaussian_episodes(8),
        lambda step, loss, accuracy: told.append(accuracy),
    )
    assert len(told) == 300
    assert np.mean(told[:30]) < 0.55 < 0.7 < np.mean(told[-60:])  # two classes of new episodes: chance is a half


@pytest.mark.parametrize("mixer", ["softmax", "linear", "gated_delta", "ovq"])
def test_a_question_is_answered_as_if_it_were_the_only_one(mixer):
    config = load_config("in_context_digits", ["learner.weights=gaussian_classes", f"learner.mixer={mixer}"])
    learner = bare_learner(config.learner, config.dictionary if mixer == "ovq" else None)
    generator = torch.Generator().manual_seed(0)
    episodes = gaussian_episodes(learner.features)(EpisodeOptions(episodes=2, questions=3), generator)
    episodes = dataclasses.replace(episodes, x=episodes.x.requires_grad_())
    loss, accuracy = _class_loss(learner, episodes, torch.Generator().manual_seed(1))
    codes = random_codes(2, episodes.classes, learner.code, generator=torch.Generator().manual_seed(1))
    losses, right, s = [], [], episodes.samples
    for x, labels, of_class in zip(episodes.x, episodes.labels, codes, strict=True):
        for number in range(3):
            shown = torch.cat([of_class[labels[:s]], torch.zeros(1, learner.code)])
            told, _ = learner(torch.cat([x[:s], x[s + number, None]])[None], shown[None])
            logits = learner.logits(told[0, -1:], of_class)
            losses.append(torch.nn.functional.cross_entropy(logits, labels[s + number, None]))
            right.append(float(logits.argmax() == labels[s + number]))
    assert accuracy == pytest.approx(np.mean(right))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    weights_and_samples = [learner.embedding.weight, learner.question, episodes.x]
    for ours, theirs in zip(
        torch.autograd.grad(loss, weights_and_samples),
        torch.autograd.grad(torch.stack(losses).mean(), weights_and_samples),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_slots_beyond_an_episodes_tokens_are_other_weights_only_where_they_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    few = ("steps=3", "tasks=2", "samples=4", "width=16", "weights=gaussian_classes")

    def temperature(*overrides):
        config = load_config("in_context_digits", (*(f"learner.{key}" for key in few), *overrides))
        return float(build_learner(config.learner, config.dictionary, 0).temperature.detach())

    def learned():
        return len(list(tmp_path.rglob("*.pt")))

    weights_of_16 = temperature("dictionary.capacity=16")
    assert temperature("dictionary.capacity=64") == weights_of_16 == temperature("dictionary.capacity=17")
    assert learned() == 1
    temperature("dictionary.capacity=8")
    temperature("dictionary.capacity=64", "dictionary.growth=plateau")
    temperature("dictionary.capacity=65", "dictionary.growth=plateau")
    assert learned() == 4
    # The same, without the short cut.
    monkeypatch.setattr(weights, "_sized_for_episodes", lambda options, dictionary: dictionary)
    assert temperature("dictionary.capacity=64") == pytest.approx(weights_of_16, rel=1e-6)
    assert learned() == 5


def test_episodes_of_data_have_its_classes_and_ask_for_samples_that_were_not_given():
    targets = torch.randint(0, 9, (150,), generator=torch.Generator().manual_seed(0))
    x = torch.arange(150.0)[:, None]  # by which a sample is known again
    options = EpisodeOptions(episodes=4, tasks=3, classes=2, samples=5, questions=40)
    draw, seen = DrawnFromData(x, targets, options), set()
    for seed in range(8):
        episodes = draw(options, torch.Generator().manual_seed(seed))
        assert torch.equal(episodes.x, draw(options, torch.Generator().manual_seed(seed)).x)
        s = episodes.samples
        for rows, labels in zip(episodes.x[..., 0].long(), episodes.labels, strict=True):
            pairs = set(zip(labels.tolist(), targets[rows].tolist(), strict=True))
            assert len(pairs) == len({label for label, _ in pairs}) == len({target for _, target in pairs})
            assert len(set(rows[:s].tolist())) == s  # none is given twice
            assert not set(rows[:s].tolist()) & set(rows[s:].tolist())
            assert (labels[:s].bincount(minlength=episodes.classes) * episodes.classes == s).all()
            assert ((labels[:s] // 2).diff() >= 0).all()  # task after task
            assert (set(labels.tolist())) == set(range(episodes.classes))
            seen |= set(rows.tolist())
    assert len(seen) > 145  # all can come


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            EpisodeOptions(tasks=5, classes=2),
            r"learner\.tasks: episodes of 5 tasks of 2 classes need 10 classes, but .* has 3",
        ),
        (
            EpisodeOptions(tasks=1, samples=4),
            r"learner\.samples: 4 training samples and one test sample per class exceed",
        ),
    ],
)
def test_data_that_has_too_little(options, line):
    targets = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    with pytest.raises(UserError, match=f"^{line}"):
        DrawnFromData(torch.zeros(14, 2), targets, options)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cl-ovq" / "learners"


@pytest.fixture
def digits(tmp_path):
    """The first five digits as a file, whatever the stream is of."""
    pixels, targets = load_digits(return_X_y=True)
    path = tmp_path / "digits.npz"
    np.savez(path, features=pixels[targets < 5] / 16 + 3, label=targets[targets < 5])
    return path


def of_file(path, *overrides):
    few = ("learner.steps=2", "learner.episodes=2", "learner.tasks=2", "evaluation.stop_after=2")
    plain = ("tracking.enabled=false", "figures=false", f"output_dir={path.parent / 'run'}")
    file = ("learner.weights=features", f"learner.data={path}")
    return load_config("in_context_digits", (*plain, *few, *file, *overrides))


def test_weights_learned_on_a_file_bring_its_mean_and_deviation(cache, digits):
    config = of_file(digits)
    assert config.learner.sha256 == hashlib.sha256(digits.read_bytes()).hexdigest()
    learner = build_learner(config.learner, config.dictionary, 0)
    x = np.load(digits)["features"].astype(np.float32)
    np.testing.assert_allclose(learner.mean[0], x.mean(0), rtol=1e-5)
    variance = x.var(0)
    np.testing.assert_allclose(learner.deviation[0] ** 2, variance + variance.mean(), rtol=1e-3)
    run_experiment(config, Console(file=io.StringIO()))
    head = trained_model(config.output_dir).head.memory
    assert torch.equal(head.mean, learner.mean)
    assert torch.equal(head.deviation, learner.deviation)
    again = build_learner(config.learner, config.dictionary, 0)  # from the cache
    assert torch.equal(again.deviation, learner.deviation)


def test_another_file_is_another_learner(cache, digits):
    config = of_file(digits)
    learner = build_learner(config.learner, config.dictionary, 0)
    held = np.load(digits)
    np.savez(digits, features=held["features"][::2], label=held["label"][::2])
    with pytest.raises(UserError, match=r"^learner\.data: .* differs from the run's file"):
        build_learner(config.learner, config.dictionary, 0)
    changed = of_file(digits)
    other = build_learner(changed.learner, changed.dictionary, 0)
    assert not torch.equal(other.embedding.weight, learner.embedding.weight)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("learner.data=null", r"learner\.data is missing"),
        ("learner.data=nothing.npz", r"learner\.data: nothing\.npz: cannot be read"),
        ("learner.features=32", r"learner\.features: 32, but .*digits\.npz has 64 per sample"),
        ("learner.tasks=9", r"learner\.tasks: episodes of 9 tasks"),
    ],
)
def test_mistakes(cache, digits, override, line):
    with pytest.raises(UserError, match=f"^{line}"):
        run_experiment(of_file(digits, override), Console(file=io.StringIO()))
    assert not list(digits.parent.glob("run/*.json"))


def test_the_model_has_other_features(cache, digits):
    config = of_file(digits, "model.name=random_features", "model.width=32")
    with pytest.raises(UserError, match=r"^learner\.features: .*one encoder's 64 features, but the model has"):
        run_experiment(config, Console(file=io.StringIO()))


def test_of_several_runs_one_learns(cache, digits, monkeypatch):
    """The others wait for it, and read what it has written."""
    config = of_file(digits)
    learner = build_learner(config.learner, config.dictionary, 0)
    (path,) = cache.glob("*.pt")
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(weights, "pretrain", None)  # an error, if it were called
    with ThreadPoolExecutor(1) as pool:
        with alone(path.with_suffix(".lock"), "another run"):
            waiting = pool.submit(build_learner, config.learner, config.dictionary, 0)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            path.write_bytes(content)
        assert torch.equal(waiting.result(30).embedding.weight, learner.embedding.weight)
