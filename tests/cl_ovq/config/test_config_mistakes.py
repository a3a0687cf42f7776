"""Every mistake in a configuration is one line that names the key, the value, and what would be right."""

import dataclasses

import pytest
from config_helpers import STREAM, known, mistake

from cl_ovq.config import ExperimentConfig, load_config, to_dict
from cl_ovq.config.identity import identity
from cl_ovq.config.parts import Owner, owners
from cl_ovq.config.renamed import RENAMED
from cl_ovq.errors import UserError
from cl_ovq.mixers import MIXERS
from cl_ovq.models import MODELS
from cl_ovq.runs.folder import check_output_dir
from cl_ovq.strategies import OPTIMIZERS, STRATEGIES
from kernels import GROWTH
from streams import STREAMS


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("model.widht", "unknown key 'model.widht': did you mean 'model.width'? known: "),
        ("modle.width", "unknown key 'modle': did you mean 'model'? known: "),
        ("sede", "unknown key 'sede': did you mean 'seed'? known: "),
        ("width", "unknown key 'width': did you mean 'model.width'? known: "),
        ("capacity", "unknown key 'capacity': did you mean 'dictionary.capacity'? known: "),
        ("model.capacity", "unknown key 'model.capacity': did you mean 'dictionary.capacity'? known: "),
        ("dictionary.epochs", "unknown key 'dictionary.epochs': did you mean 'strategy.epochs'? known: "),
        (
            "stream.experience",
            "unknown key 'stream.experience': did you mean 'stream.experiences'? known: ",
        ),
        ("model.qqqqqqqq", "unknown key 'model.qqqqqqqq': known: "),
        ("model.width.x", "model.width: {'x': 1} is not a whole number"),
    ],
)
def test_unknown_key(write, key, line):
    assert mistake(write(STREAM), [f"{key}=1"]).startswith(line)
    tree = {"stream": dict(STREAM["stream"])}
    *sections, leaf = key.split(".")
    inner = tree
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[leaf] = 1
    assert mistake(write(tree)).startswith(line)


def test_all_keys_that_a_section_has_are_named(write):
    line = mistake(write(STREAM), ["model.qqqqqqqq=1"])
    assert line == f"unknown key 'model.qqqqqqqq': {known(vars(load_config(write(STREAM)).model))}"


@pytest.mark.parametrize(
    ("stream", "key", "having", "lacking"),
    [
        ("split_digits", "data_dir", ["pg19", "rotated_mnist", "split_fashion_mnist"], ["rotated_digits", "recall"]),
        ("text", "data_dir", ["pg19", "split_mnist"], ["split_digits"]),
        ("recall", "repeats", ["positional_recall, rebinding"], ["recall", "regression"]),
        ("permuted_digits", "degrees", ["rotated_digits", "rotated_mnist"], ["permuted_mnist", "split_digits"]),
    ],
)
def test_a_key_that_only_other_streams_use_is_refused(write, stream, key, having, lacking):
    tree = {"stream": {"name": stream}}
    line = mistake(write(tree), [f"stream.{key}=1"])
    assert line.startswith(f"stream.{key}: '{stream}' does not use it: streams that do: ")
    named = line.rpartition(": ")[2].split(", ")
    assert all(name in named for names in having for name in names.split(", "))
    assert not set(lacking) & set(named)
    assert mistake(write({"stream": {"name": stream, key: 1}})) == line


@pytest.mark.parametrize(
    ("overrides", "named", "having"),
    [
        (["strategy.alpha=1"], "naive", "strategies that do: der, derpp"),
        (["strategy.name=der", "strategy.beta=1"], "der", "strategies that do: derpp"),
        (["model.window=4"], "ovq", "mixers that do: sliding_window"),
        (["model.name=mlp", "model.window=4"], "mlp", "models that do: patch_transformer, sequence_model"),
        (["model.name=mlp", "dictionary.growth_rate=1"], "mlp", "models that do: patch_transformer, sequence_model"),
        (["model.mixer=linear", "dictionary.chunk_size=4"], "linear", "mixers that do: ovq, vq"),
        (["model.mixer=linear", "dictionary.half_life=4"], "linear", "mixers that do: ovq"),
        (["model.mixer=vq", "dictionary.capacity=4"], "vq", "mixers that do: ovq"),
        (["dictionary.growth_rate=1"], "plateau", "growth schedules that do: linear"),
        (["dictionary.scope=sequence", "dictionary.half_life=9"], "sequence", "scopes that do: stream, task"),
        (["dictionary.rate=0.1"], "adaptive", "learning rates that do: constant, floored"),
        (["memory.capacity=9"], "linear", "heads that do: memory"),
        (["model.head=memory", "memory.growth_rate=9"], "plateau", "growth schedules that do: linear"),
        (["optimizer.momentum=0.9"], "adamw", "optimizers that do: sgd"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_key_that_only_other_parts_use_is_refused(write, overrides, named, having):
    key = overrides[-1].partition("=")[0]
    assert mistake(write(STREAM), overrides) == f"{key}: '{named}' does not use it: {having}"


def test_a_key_that_no_mixer_of_a_pattern_uses_is_refused(write):
    line = mistake(write(STREAM), ["model.pattern=[ovq,vq]", "model.window=4"])
    assert line == "model.window: 'ovq', 'vq' do not use it: mixers that do: sliding_window"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_key_that_was_renamed_is_refused_with_its_new_name(write, old, new):
    line = f"{old}: this key is now called {new}"
    assert mistake(write(STREAM), [f"{old}=1"]) == line
    section, key = old.split(".")
    assert mistake(write(STREAM | {section: {key: 1}})) == line


def test_a_layer_is_checked_by_the_names_in_force_at_it_and_keeps_what_the_last_ones_have(write):
    write(STREAM | {"strategy": {"name": "derpp", "alpha": 0.3, "beta": 0.2, "buffer_size": 9}}, "base.yaml")
    path = write({"include": "base.yaml", "strategy": {"name": "der", "epochs": 2}})
    found = vars(load_config(path).strategy)
    assert (found["name"], found["alpha"], found["buffer_size"]) == ("der", 0.3, 9)
    assert "beta" not in found
    found = vars(load_config(path, ["strategy.name=replay", "strategy.epochs=3"]).strategy)
    assert (found["buffer_size"], found["epochs"]) == (9, 3)
    assert "alpha" not in found
    write(STREAM | {"strategy": {"name": "naive", "alpha": 0.3}}, "base.yaml")  # wrong by itself
    assert mistake(path).startswith("strategy.alpha: 'naive' does not use it")
    write({"strategy": {"alpha": 0.3}}, "base.yaml")  # names nothing, so it is of the layer above
    path = write({"include": "base.yaml", **STREAM, "strategy": {"name": "der"}})
    assert load_config(path).strategy.alpha == 0.3


def test_null_for_a_section_that_is_set_is_refused(write):
    """It would be passed over, and leave the encoder where it is."""
    path = write({"stream": {"name": "features", "data": "x.csv"}, "encoder": {"name": "hashed_ngrams"}})
    with pytest.raises(UserError, match=r"^encoder: null removes nothing: .* such as encoder\.name"):
        load_config(path, ["encoder=null"])


def test_null_for_a_key_that_only_other_streams_use_says_nothing(write):
    """Results of revisions in which streams of digits had a `data_dir` hold it as null, and are run again."""
    old = {"stream": {"name": "split_digits", "data_dir": None}}
    new = {"stream": {"name": "split_digits"}}
    config = load_config(write(old))
    assert to_dict(config) == to_dict(load_config(write(new)))
    tree = to_dict(config)
    tree["stream"]["data_dir"] = None
    assert identity(tree) == identity(to_dict(config))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("stream.name=split_digit", ["stream.name", "'split_digit'", "did you mean 'split_digits'?", known(STREAMS)]),
        ("model.name=patch_transfomer", ["model.name", "did you mean 'patch_transformer'?", known(MODELS)]),
        ("model.mixer=oqv", ["model.mixer", "unknown mixer 'oqv'", "did you mean 'ovq'?", known(MIXERS)]),
        ("model.mixer=[ovq]", ["model.mixer", "unknown mixer '[ovq]'", "did you mean 'ovq'?"]),
        ("model.mixer=true", ["model.mixer", "unknown mixer 'true'", known(MIXERS)]),
        ("model.mixer=zzzz", ["model.mixer", "unknown mixer 'zzzz'", known(MIXERS)]),
        ("strategy.name=reply", ["strategy.name", "did you mean 'replay'?", known(STRATEGIES)]),
        ("optimizer.name=adamv", ["optimizer.name", "did you mean 'adam", known(OPTIMIZERS)]),
        ("dictionary.growth=platau", ["dictionary.growth", "'platau'", "did you mean 'plateau'?", *GROWTH]),
        ("dictionary.scope=tasks", ["dictionary.scope", "did you mean 'task'?", "known: sequence, stream, task"]),
        ("stream.scenario=class", ["stream.scenario", "'class'", "class_incremental", "task_incremental"]),
        ("evaluation.split=train", ["evaluation.split", "known: test, validation"]),
        ("device=gpu", ["device", "'gpu'", "known: auto, cpu, cuda"]),
        ("device=cuda:99", ["device", "cuda:99"]),
        ("model.heads=3", ["model.heads", "3", "model.width=64"]),
        ("model.pattern=[softmax,oqv]", ["model.pattern: unknown mixer 'oqv': did you mean 'ovq'?"]),
        ("model.pattern=[]", ["model.pattern: is empty"]),
    ],
)
def test_unknown_name(write, override, parts):
    line = mistake(write(STREAM), [override])
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("mixer", ["model.mixer=sliding_window", "model.position=rotary"])
def test_rotary_positions_need_heads_of_even_size(write, mixer):
    overrides = [mixer] if "mixer" in mixer else ["model.mixer=softmax", mixer]
    line = mistake(write(STREAM), [*overrides, "model.width=12", "model.heads=4"])
    assert line.startswith("model.heads: rotary positions need heads of even size")
    assert line.endswith("have 3 features each")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.width=true", "model.width: True is not a whole number"),
        ("model.width=1.5", "model.width: 1.5 is not a whole number"),
        ("model.width=2.0", "model.width: 2.0 is not a whole number"),
        ("model.width=wide", "model.width: 'wide' is not a whole number"),
        ("model.width='64'", "model.width: '64' is not a whole number"),
        ("model.width=null", "model.width: None is not a whole number"),
        ("model.width=[1]", "model.width: [1] is not a whole number"),
        ("model.width={a: 1}", "model.width: {'a': 1} is not a whole number"),
        ("seed=yess", "seed: 'yess' is not a whole number"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate: 'fast' is not a number"),
        ("optimizer.learning_rate=true", "optimizer.learning_rate: True is not a number"),
        ("tracking.enabled=1", "tracking.enabled: 1 is not true or false"),
        ("tracking.enabled=maybe", "tracking.enabled: 'maybe' is not true or false"),
        ("strategy.batch_size=few", "strategy.batch_size: 'few' is not a whole number"),
        ("threads=0.5", "threads: 0.5 is not a whole number or null"),
        ("tracking.tags=x", "tracking.tags: 'x' is not a mapping"),
        ("tracking.tags=[x]", "tracking.tags: ['x'] is not a mapping"),
        ("evaluation.lengths={a: 1}", "evaluation.lengths: {'a': 1} is not a list"),
        ("tracking.tags={a: {b: c}}", "tracking.tags.a: {'b': 'c'} is not text"),
        ("tracking.tags={a: null}", "tracking.tags.a: None is not text"),
        ("stream.class_order=5", "stream.class_order: 5 is not a list or null"),
        ("stream.class_order=[0, one]", "stream.class_order[1]: 'one' is not a whole number"),
        ("stream.class_order=[true]", "stream.class_order[0]: True is not a whole number"),
        ("model.width=???", "model.width: '???' means a missing value: set one, or remove the key"),
    ],
)
def test_wrong_type(write, override, line):
    assert mistake(write(STREAM), [override]) == line


def test_options_of_a_schedule_have_a_range_too(write):
    novelty = ["dictionary.growth=novelty", "dictionary.novelty_threshold=-1.01"]
    line = "dictionary.novelty_threshold: -1.01 is too small: it must be at least -1"
    assert mistake(write(STREAM), novelty) == line
    constant = ["dictionary.learning_rate=constant", "dictionary.rate=1.01"]
    assert mistake(write(STREAM), constant) == "dictionary.rate: 1.01 is too large: it must be at most 1"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate: nan is not a finite number"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: inf is not a finite number"),
        ("optimizer.learning_rate=-.inf", "optimizer.learning_rate: -inf is not a finite number"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: 0 is too small: it must be greater than 0"),
        ("model.width=0", "model.width: 0 is too small: it must be at least 1"),
        ("model.dropout=1", "model.dropout: 1 is too large: it must be at most 0.99"),
        ("stream.experiences=0", "stream.experiences: 0 is too small: it must be at least 1"),
        ("stream.validation_fraction=0.95", "stream.validation_fraction: 0.95 is too large: it must be at most 0.9"),
        ("strategy.batch_size=0", "strategy.batch_size: 0 is too small: it must be at least 1"),
        ("seed=-1", "seed: -1 is too small: it must be at least 0"),
        ("seed=1" + "0" * 400, "seed: the integer is too large: it must fit into 64 bits"),
        ("seed=0x1" + "0" * 6000, "seed: the integer is too large: it must fit into 64 bits"),
        ("model.mlp_ratio=1e308", "model.mlp_ratio: 1e+308 is too large: it must be at most 1024"),
        ("optimizer.learning_rate=1e308", "optimizer.learning_rate: 1e+308 is too large: the largest 32-bit number"),
        ("model.width=100000000", "model.width: 100000000 is too large: it must be at most 65536"),
        ("model.depth=1000000", "model.depth: 1000000 is too large: it must be at most 10000"),
        ("strategy.epochs=1000000000000", "strategy.epochs: 1000000000000 is too large: it must be at most 1000000"),
        ("strategy.batch_size=1000000000000", "strategy.batch_size: 1000000000000 is too large"),
        ("dictionary.capacity=1000000000000", "dictionary.capacity: 1000000000000 is too large"),
        ("dictionary.chunk_size=1000000000000", "dictionary.chunk_size: 1000000000000 is too large"),
        ("evaluation.lengths=[1000000000000]", "evaluation.lengths[0]: 1000000000000 is too large"),
        ("stream.experiences=1000000000", "stream.experiences: 1000000000 is too large: it must be at most 10000"),
        ("seeds=1000000000", "seeds: 1000000000 is too large: it must be at most 1000"),
        ("threads=1000000000", "threads: 1000000000 is too large: it must be at most 4096"),
        ("device=cpu:3", "device: 'cpu:3' does not exist: CPUs are not numbered: use cpu"),
        ("evaluation.stop_after=6", "evaluation.stop_after: 6 is too large: 'split_digits' has 5 experiences"),
        ("evaluation.rows=[0,6]", "evaluation.rows: 6 is too large: 'split_digits' has 5 experiences"),
        ("model.mlp_ratio=1" + "0" * 400, "model.mlp_ratio: the integer is too large: it must fit into 64 bits"),
    ],
)
def test_out_of_range(write, override, line):
    assert mistake(write(STREAM), [override]).startswith(line)


def test_every_whole_number_has_a_largest_value():
    """Or is one of those of which any is right: training steps, and seeds."""
    free = {"seed", "evaluation.every_steps", "checkpoint.every_steps", "evaluation.stop_after"}
    free |= {"stream.class_order"}
    for owner in (Owner("", ExperimentConfig), *owners()):
        for field in dataclasses.fields(owner.options):
            key = f"{owner.section}.{field.name}".lstrip(".")
            if str(field.type).startswith(("int", "list[int]")) and key not in free:
                assert "maximum" in field.metadata, key


@pytest.mark.parametrize("section", ["stream", "model", "dictionary", "strategy", "optimizer", "tracking"])
def test_section_given_as_scalar(write, section):
    expected = f"{section}: 'split_digits' is not a section: write {section}.name=split_digits"
    assert mistake(write(STREAM), [f"{section}=split_digits"]).startswith(expected)
    assert mistake(write(STREAM | {section: "split_digits"})).startswith(expected)
    assert mistake(write(STREAM | {section: "split_digits"}), ["stream.name=split_digits"]).startswith(expected)


@pytest.mark.parametrize("override", ["model.mixer", "softmax", "=softmax", "", " =1", "--epochs 3"])
def test_malformed_override(write, override):
    assert mistake(write(STREAM), [override]).startswith(f"override '{override}' is not of the form key=value")


@pytest.mark.parametrize(
    "override", ["model.width=[1", "model.width={a: ", "seed=${model.width", "seed=1" + "0" * 5000]
)
def test_unreadable_override_is_named_among_others(write, override):
    line = mistake(write(STREAM), ["model.mixer=softmax", override, "seed=1"])
    assert line.startswith(f"cannot read the override '{override}': ")
    assert "softmax" not in line


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.width=${model.widht}", "model.width: "),
        ("model.width=${model.width}", "model.width: "),
        ("model.width=${seed}", "model.width: 0 is too small: it must be at least 1"),
        ("model.width=${optimizer.learning_rate}", "model.width: 0.001 is not a whole number"),
        ("model.width=${no_such_resolver:1}", "model.width: "),
        ("model=${dictionary}", "model: '${dictionary}' is not a section"),
    ],
)
def test_interpolation_that_gives_nothing_valid(write, override, part):
    assert mistake(write(STREAM), [override]).startswith(part)


def test_output_directory_with_results_is_refused(write, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError) as error:
        check_output_dir(load_config(write(STREAM), [f"output_dir={tmp_path}"]))
    assert str(error.value) == (
        f"output_dir: {tmp_path} already holds the results of a run: add --overwrite to replace it, or choose another "
        "directory"
    )
