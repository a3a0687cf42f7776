"""Vectors learned in the state: what is told, what weights are learned on, and whole runs on episodes of sine waves."""

import io
import re

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from cl_ovq.cli.app import app
from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.in_context.head import InContextValues
from cl_ovq.in_context.learner import ValueLearner
from cl_ovq.in_context.pretraining import _value_loss, pretrain
from cl_ovq.in_context.sine import SineEpisodeOptions, sine_episodes
from cl_ovq.in_context.weights import bare_learner
from cl_ovq.models.saving import load_model, save_model
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from streams import rows_of

SMALL = (
    *("stream.tasks=3", "stream.samples=7", "stream.questions=4", "stream.validation=0", "stream.dimensions=12"),
    *("learner.width=16", "learner.features=12", "learner.code=12", "dictionary.capacity=6", "dictionary.chunk_size=4"),
    *("learner.steps=2", "learner.episodes=2", "learner.tasks=3", "learner.samples=3", "strategy.batch_size=4"),
    *("tracking.enabled=false", "figures=false"),
)
QUIET = Console(file=io.StringIO())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def configured(*overrides):
    dictionary = all("mixer" not in one for one in overrides)
    few = [one for one in SMALL if dictionary or not one.startswith("dictionary.")]
    return load_config("in_context_sine", (*few, *overrides))


def learner_of(*overrides, seed=0):
    config = configured(*overrides)
    torch.manual_seed(seed)
    learner = bare_learner(config.learner, config.dictionary, "vectors").eval()
    learner.question.data.normal_()
    learner.deviation.fill_(1.0)
    return learner


def one_by_one(learner, x, y):
    """What is told of the last of samples `[T, D]`, fed token by token, with y `[T - 1, V]` of those before it."""
    states = None
    for token, value in zip(x[:-1], y, strict=True):
        _, states = learner(token[None, None], value[None, None], states, return_state=True)
    return learner(x[None, -1:], None, states)[0][0, 0]


@pytest.mark.parametrize("mixer", ["softmax", "ovq", "linear", "gated_delta", "mamba2"])
def test_a_head_tells_what_the_learner_does_of_the_whole_sequence(mixer):
    learner = learner_of(*([] if mixer == "ovq" else [f"learner.mixer={mixer}"]))
    head = InContextValues(features=12, classes=12, learner=learner, seed=0)
    g = torch.Generator().manual_seed(1)
    x, y, queries = (3 * torch.randn(n, 12, generator=g) for n in (11, 11, 4))
    with torch.no_grad():
        before = head(queries)
        for part in (slice(5), slice(5, 6), slice(6, 11)):
            head.observe(x[part], y[part])
        told = head(queries)
        for query, empty, found in zip(queries, before, told, strict=True):
            torch.testing.assert_close(found, one_by_one(learner, torch.cat([x, query[None]]), y), atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(empty, one_by_one(learner, query[None], y[:0]), atol=2e-5, rtol=1e-4)
    assert head.tokens == 11
    assert not torch.allclose(before, told, atol=1e-3)


def test_a_question_is_a_sample_with_a_vector_of_its_own_in_the_place_of_an_answer():
    learner = learner_of("learner.mixer=softmax")
    weight, bias = learner.embedding.weight, learner.embedding.bias
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 3, 12, generator=g), torch.randn(1, 3, 12, generator=g)
    y[0, 1] = torch.nan
    expected = x @ weight[:, :12].T + y.nan_to_num() @ weight[:, 12:].T + bias
    expected[0, 1] += learner.question
    torch.testing.assert_close(learner._embed(x, y), expected)
    torch.testing.assert_close(learner._embed(x, None)[0, 0], x[0, 0] @ weight[:, :12].T + bias + learner.question)


def test_how_large_a_sample_is_counts():
    head = InContextValues(features=12, classes=12, learner=learner_of(), seed=0)
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(head(x), head(2 * x), atol=1e-2)


def test_the_loss_of_an_episode_is_the_mean_squared_error_of_its_questions():
    learner = learner_of("learner.mixer=softmax")
    options = SineEpisodeOptions(episodes=2, tasks=3, samples=2, questions=3)
    episodes = sine_episodes(12)(options, torch.Generator().manual_seed(2))
    s = episodes.samples
    with torch.no_grad():
        loss, said = _value_loss(learner, episodes, torch.Generator())
        total = 0.0
        for x, y in zip(episodes.x, episodes.y, strict=True):
            states = None
            for number, (token, value) in enumerate(zip(x, y, strict=True)):
                if number < s:
                    _, states = learner(token[None, None], value[None, None], states, return_state=True)
                else:  # reads the samples' state, and leaves it as it was
                    told, _ = learner(token[None, None], None, states)
                    total += sum((float(a) - float(b)) ** 2 for a, b in zip(told[0, 0], value, strict=True))
    assert float(loss) == pytest.approx(total / (2 * 3 * 12), rel=1e-4)
    assert said == float(loss)


def test_episodes_are_sine_waves_task_after_task():
    options = SineEpisodeOptions(episodes=3, tasks=4, samples=5, questions=30)
    lengths = set()
    for seed in range(6):
        episodes = sine_episodes(50)(options, torch.Generator().manual_seed(seed))
        assert torch.equal(episodes.x, sine_episodes(50)(options, torch.Generator().manual_seed(seed)).x)
        lengths.add(episodes.samples)
        tasks = episodes.samples // 5
        for x, y in zip(episodes.x.double().numpy(), episodes.y.double().numpy(), strict=True):
            # Targets of a task are multiples of one wave, and those of T tasks of T waves.
            blocks = y[: 5 * tasks].reshape(tasks, 5, 50)
            assert all(np.linalg.matrix_rank(block, tol=1e-3) == 1 for block in blocks)
            assert np.linalg.matrix_rank(y, tol=1e-3) == tasks  # questions are of the episode's tasks
            shapes = blocks[:, 0] / np.linalg.norm(blocks[:, 0], axis=1, keepdims=True)
            asked = np.abs(shapes @ y[5 * tasks :].T).argmax(0)
            assert len(set(asked)) == tasks
            # A question's input is that of its task, less noise: a multiple of the mean of the task's inputs.
            means = x[: 5 * tasks].reshape(tasks, 5, 50).mean(1)
            near = np.abs((means / np.linalg.norm(means, axis=1, keepdims=True)) @ x[5 * tasks :].T).argmax(0)
            assert (near == asked).mean() > 0.9
    assert lengths <= {5, 10, 15, 20}
    assert len(lengths) > 1


def test_pretraining_teaches_waves_that_were_never_seen():
    learner = learner_of("learner.mixer=linear", "learner.width=64", "learner.depth=1")
    losses = []
    options = SineEpisodeOptions(steps=200, episodes=8, tasks=1, samples=4, questions=8, learning_rate=1e-2)
    pretrain(
        learner,
        options,
        torch.Generator().manual_seed(0),
        sine_episodes(12),
        lambda step, loss, said: losses.append(loss),
    )
    assert np.mean(losses[:5]) > 0.4  # a half of the mean square of amplitudes is 0.54
    assert np.mean(losses[-40:]) < 0.25
    assert int(learner.trained_length) == 4


def test_the_matrix_is_the_error_of_every_task_after_every_task(tmp_path):
    """Against a learner that is given whole tasks; metrics against their formulas, with the sign turned.

    One layer of attention does not depend on the order of a task's samples, which the run draws.
    """
    config = configured(f"output_dir={tmp_path / 'run'}", "learner.mixer=softmax", "learner.depth=1")
    result = run_experiment(config, QUIET)
    stream, learner = load_stream(config), result.model().head.memory.learner
    train = [rows_of(one.dataset) for one in stream.benchmark.streams["train"]]
    test = [rows_of(one.dataset) for one in stream.benchmark.streams["test"]]
    matrix = result.to_numpy()
    assert result.quantity == "squared_error"
    with torch.no_grad():
        for column, rows in enumerate(test):
            head = InContextValues(features=12, classes=12, learner=learner, seed=0)
            errors = []
            for part in [None, *train]:
                if part is not None:
                    head.observe(stream.samples.gather(part), stream.samples.targets[part])
                told = head(stream.samples.gather(rows)).double().numpy()
                errors.append(np.square(told - stream.samples.targets[rows].double().numpy()).mean())
            np.testing.assert_allclose(-matrix[:, column], errors, rtol=1e-3)
    error = -matrix
    assert result.metrics["squared_error"] == pytest.approx(error[3].mean())
    lost = [error[3, j] - error[j + 1 : 3, j].min() for j in range(2)]
    assert result.metrics["forgetting"] == pytest.approx(np.mean(lost), abs=1e-6)
    gained = [error[j + 1, j] - error[3, j] for j in range(2)]
    assert result.metrics["backward_transfer"] == pytest.approx(np.mean(gained))
    assert "gain" not in result.metrics


@pytest.mark.parametrize("overrides", [(), ("strategy.name=ridge", "learner=null")])
def test_a_saved_model_is_the_trained_one(tmp_path, overrides):
    config = configured(f"output_dir={tmp_path / 'run'}") if not overrides else bare(*overrides, tmp_path=tmp_path)
    trained = run_experiment(config, QUIET).model()
    stream = load_stream(config)
    save_model(tmp_path / "model.pt", trained, config, stream)
    x = stream.samples.gather(torch.arange(5))
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model.pt").model(x), trained(x))


def bare(*overrides, tmp_path):
    """A run on episodes of sine waves without a learner."""
    text = "stream: {name: sine, tasks: 3, dimensions: 12}\nmodel: {name: pixels}\ntracking: {enabled: false}\n"
    (tmp_path / "bare.yaml").write_text(text)
    return load_config(tmp_path / "bare.yaml", (*overrides, "figures=false", f"output_dir={tmp_path / 'run'}"))


def test_weights_from_a_file_are_those_that_were_learned(tmp_path):
    path = tmp_path / "sine.pt"
    outcome = CliRunner().invoke(app, ["pretrain", "in_context_sine", *SMALL, "--output", str(path)])
    assert outcome.exit_code == 0, outcome.output
    runs = {}
    for name, more in (("learned", ()), ("read", ("learner.weights=file", f"learner.path={path}"))):
        few = [one for one in SMALL if not more or not re.match(r"learner\.(steps|episodes|tasks|samples)=", one)]
        given = [f"output_dir={tmp_path / name}", *few, *more]
        runs[name] = run_experiment(load_config("in_context_sine", given), QUIET)
    assert runs["read"].matrix == runs["learned"].matrix
    assert isinstance(runs["read"].model().head.memory.learner, ValueLearner)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ("stream.dimensions=10",),
            r"learner\.code: 12, but the stream's targets have 10 numbers: use",
        ),
        (("learner.features=11",), r"learner\.code: 12, but targets have learner\.features=11 points"),
        (("stream.noise=-1",), r"stream\.noise: -1"),
        (("model.head=memory",), r"model\.head: a memory cannot be combined with strategy\.name=in_context"),
        (
            ("learner.weights=pretrained",),
            r"learner\.weights: 'pretrained' are for streams of classes, but 'sine'",
        ),
        (("evaluation.capacities=[4]",), r"evaluation\.capacities: 'sine' has vectors, but only sequences"),
        (("model.name=sequence_model",), r"model\.name: 'sequence_model' reads sequences, but 'sine' has vectors"),
    ],
)
def test_mistakes(tmp_path, overrides, line):
    few = SMALL
    if overrides == ("learner.weights=pretrained",):
        few = [one for one in SMALL if not re.match(r"learner\.(steps|episodes|tasks|samples)=", one)]
    with pytest.raises(UserError, match=f"^{line}") as refusal:
        run_experiment(load_config("in_context_sine", (*few, f"output_dir={tmp_path / 'run'}", *overrides)), QUIET)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.json"))


def test_waves_are_no_weights_for_classes(tmp_path):
    config = load_config("in_context_digits", ("learner.weights=sine", f"output_dir={tmp_path}"))
    with pytest.raises(UserError, match=r"^learner\.weights: 'sine' are for streams of vectors, but 'split_digits'"):
        run_experiment(config, QUIET)


@pytest.mark.parametrize("strategy", ["ncm", "slda", "knn"])
def test_what_needs_classes_is_refused(tmp_path, strategy):
    line = f"^strategy.name: '{strategy}' needs class labels, but 'sine' has vectors without classes: known: .*ridge"
    with pytest.raises(UserError, match=line):
        run_experiment(bare(f"strategy.name={strategy}", tmp_path=tmp_path), QUIET)


@pytest.mark.parametrize("strategy", ["naive", "joint", "replay", "derpp", "lwf", "ewc"])
def test_networks_learn_vectors_too(tmp_path, strategy):
    result = run_experiment(bare(f"strategy.name={strategy}", "model.name=mlp", tmp_path=tmp_path), QUIET)
    assert result.diverged is None
    assert result.quantity == "squared_error"
    assert 0 < result.metrics["squared_error"] < 1
