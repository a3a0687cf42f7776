"""What a configuration file, an include and overrides give."""

import dataclasses
import typing

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cl_ovq.config import ExperimentConfig, load_config, to_dict
from cl_ovq.config.keys import flatten, sections
from cl_ovq.config.load import list_experiments
from cl_ovq.config.parts import current, default_of, owners, schema_of
from cl_ovq.errors import UserError
from cl_ovq.mixers import operator_options
from kernels import ASSIGNMENT, GROWTH, LEARNING_RATES, PAPER, READ_OUTS, SEEDS, DictionaryOptions
from streams import STREAMS

STREAM = {"stream": {"name": "split_digits"}}


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """`write(content)`: the path of a file with a mapping as YAML, or with text as it is."""
    folder = tmp_path_factory.mktemp("experiments")

    def write(content, name="experiment.yaml"):
        path = folder / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


def test_defaults_are_those_of_the_schema(write):
    config = load_config(write(STREAM))
    for section, cls in schema_of(STREAM).items():
        if section != "stream":
            assert getattr(config, section) == cls()
    assert config.stream.options == STREAMS["split_digits"].Options()
    assert (config.seed, config.device, config.threads, config.output_dir) == (0, "auto", None, None)


def test_values_of_the_file_and_overrides(write):
    path = write(STREAM | {"model": {"width": 8, "depth": 3}, "seed": 4})
    config = load_config(path, ["model.width=16", "optimizer.learning_rate=1", "tracking.tags.note=7"])
    assert (config.model.width, config.model.depth, config.seed) == (16, 3, 4)
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.tracking.tags == {"note": "7"}


def test_later_overrides_win(write):
    assert load_config(write(STREAM), ["seed=1", "seed=2"]).seed == 2


def test_empty_section_is_the_default(write):
    assert load_config(write(STREAM | {"model": None})) == load_config(write(STREAM))
    assert load_config(write(STREAM), ["model=null"]) == load_config(write(STREAM))


def test_include_lies_below_the_file_and_the_overrides(write):
    write(STREAM | {"model": {"width": 8, "depth": 3, "heads": 2}, "tracking": {"tags": {"a": "1"}}}, "base.yaml")
    path = write({"include": "base.yaml", "model": {"depth": 4, "heads": 4}, "tracking": {"tags": {"b": "2"}}})
    config = load_config(path, ["model.heads=8"])
    assert (config.model.width, config.model.depth, config.model.heads) == (8, 4, 8)
    assert config.tracking.tags == {"a": "1", "b": "2"}
    assert "include" not in to_dict(config)


def test_a_preset_is_the_keys_that_it_stands_for(write):
    """Keys beside it beat it, and so does what lies above it; it beats what lies below."""
    path = write(
        {"include": str(write({"dictionary": {"assignment": "all", "growth": "linear"}}, "below.yaml")), **STREAM}
    )
    config = load_config(path, ["dictionary.preset=paper", "dictionary.read_out=unit"])
    found = {key: getattr(config.dictionary, key) for key in ("assignment", "growth", "slot_init", "read_out")}
    assert found == {"assignment": "old", "growth": "plateau", "slot_init": "spread", "read_out": "unit"}
    assert "preset" not in to_dict(config)["dictionary"]
    path = write(STREAM | {"dictionary": {"preset": "paper"}}, "preset.yaml")
    assert load_config(path, ["dictionary.growth=all"]).dictionary.growth == "all"
    assert operator_options(load_config(path).dictionary) == DictionaryOptions(capacity=512, chunk_size=64, **PAPER)
    assert load_config(path, ["dictionary.preset=null"]) == load_config(write(STREAM))
    with pytest.raises(UserError, match=r"^unknown dictionary\.preset 'papers': did you mean 'paper'"):
        load_config(path, ["dictionary.preset=papers"])
    with pytest.raises(UserError, match="'softmax' does not use it"):
        load_config(path, ["model.mixer=softmax", "dictionary.preset=paper"])


def test_interpolations_see_the_whole_tree(write):
    path = write(STREAM | {"model": {"width": "${dictionary.capacity}"}, "tracking": {"run_name": "s${seed}"}})
    config = load_config(path, ["seed=3", "dictionary.capacity=32", "model.depth=${stream.experiences}"])
    assert (config.model.width, config.tracking.run_name, config.model.depth) == (32, "s3", 5)


def test_overridden_stream_keeps_the_options_that_it_has_too(write):
    path = write({"stream": {"name": "split_digits", "experiences": 2, "scenario": "domain_incremental"}})
    config = load_config(path, ["stream.name=split_fashion_mnist", "stream.shuffle_classes=false"])
    assert config.stream.name == "split_fashion_mnist"
    assert isinstance(config.stream.options, STREAMS["split_fashion_mnist"].Options)
    assert (config.stream.options.experiences, config.stream.options.scenario) == (2, "domain_incremental")
    assert config.stream.options.shuffle_classes is False


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("growth", GROWTH),
        ("slot_init", SEEDS),
        ("assignment", ASSIGNMENT),
        ("learning_rate", LEARNING_RATES),
        ("read_out", READ_OUTS),
    ],
)
def test_every_name_of_the_operator_is_accepted(write, key, registry):
    for name in registry:
        assert getattr(load_config(write(STREAM), [f"dictionary.{key}={name}"]).dictionary, key) == name


def test_every_shipped_experiment_loads(forgotten):
    assert {"quickstart", "split_fashion_mnist"} <= set(list_experiments())
    for name in list_experiments():
        load_config(name)


def test_experiments_are_found_by_name_and_by_path():
    assert load_config("quickstart") == load_config("experiments/quickstart.yaml")


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


# Properties

KEYS = [*flatten(to_dict(load_config("quickstart"))), "stream", "model", "tracking", "x", "model.x", ""]
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["null", "true", ".nan", "[1, 2]", "{a: 1}", "${seed}", "${x}", "[", "${", "1e400", "-1", "???"]),
    st.integers().map(str),
    st.floats().map(str),
)


@settings(max_examples=100)
@example(overrides=["[="])
@example(overrides=["model[mixer]=softmax"])
@example(overrides=["a..b=1"])
@given(overrides=st.lists(st.builds("{}={}".format, st.sampled_from(KEYS) | st.text(max_size=8), VALUES), max_size=3))
def test_any_override_is_accepted_or_a_mistake(overrides):
    assert_accepted_or_a_mistake("quickstart", overrides)


def assert_accepted_or_a_mistake(path, overrides=()):
    try:
        _check_types(load_config(path, overrides))
    except UserError as error:
        if len(str(error).splitlines()) != 1:
            pytest.fail(f"not one line: {error}")


def _check_types(config: ExperimentConfig):
    """Check that every leaf has the type that its field declares."""
    sections = (getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "stream")
    for section in (config.stream.options, *filter(dataclasses.is_dataclass, sections)):
        hints = typing.get_type_hints(type(section))
        for field in dataclasses.fields(section):
            value, hint = getattr(section, field.name), hints[field.name]
            origins = [typing.get_origin(part) or part for part in (typing.get_args(hint) or (hint,))]
            allowed = [typing.get_origin(hint)] if typing.get_origin(hint) in (dict, list) else origins
            assert type(value) in allowed, (field.name, value)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.dates())
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from([*sections(), "name", "seed", "width", "tags", "include", "class_order"])
            | st.text(max_size=5)
            | st.integers(),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(tree=TREES, stream=st.booleans())
@example(tree="0", stream=False)
def test_any_yaml_tree_is_accepted_or_a_mistake(write, tree, stream):
    if stream and isinstance(tree, dict):
        tree = tree | STREAM
    assert_accepted_or_a_mistake(write(yaml.safe_dump(tree, allow_unicode=True)))


@settings(max_examples=100)
@given(text=st.text(alphabet=st.sampled_from("abn:-?&*!|>'\"[]{}#%@,\n \t01.~$") | st.characters(codec="utf-8")))
def test_any_text_is_accepted_or_a_mistake(write, text):
    assert_accepted_or_a_mistake(write(text))


def _valid(field, hint):
    """Return a strategy for the values of a field of the schema."""
    limits = field.metadata
    if "choices" in limits:  # first: of the parts of its registry a field may take only some
        return st.sampled_from(limits["choices"])
    if "parts" in limits:
        named = st.sampled_from(list(limits["parts"]))
        return st.lists(named, max_size=3) if isinstance(default_of(field), list) else named
    low = limits.get("minimum", limits.get("exclusive_minimum"))
    parts = (hint,) if typing.get_origin(hint) is list else typing.get_args(hint) or (hint,)
    kinds = {typing.get_origin(part) or part for part in parts}
    if typing.get_origin(hint) is dict:
        return st.dictionaries(NAMES, NAMES, max_size=2)
    options = []
    if bool in kinds:
        options.append(st.booleans())
    if int in kinds:
        options.append(st.integers(low, limits.get("maximum", 2**40)))
    if float in kinds:
        high, exclude = limits.get("maximum", 1e6), "exclusive_minimum" in limits
        options.append(st.floats(low, high, exclude_min=exclude, allow_nan=False, allow_infinity=False))
    if str in kinds:
        options.append(NAMES)
    if list in kinds:
        of_names = any(typing.get_args(part) == (str,) for part in (hint, *typing.get_args(hint)))
        numbers = (
            st.permutations(range(10))
            if low is None
            else st.lists(st.integers(low, limits.get("maximum", 2**40)), max_size=3)
        )
        if any(typing.get_args(part) == (float,) for part in (hint, *typing.get_args(hint))):
            exclude = "exclusive_minimum" in limits
            numbers = st.lists(
                st.floats(low, limits.get("maximum", 1e6), exclude_min=exclude, allow_infinity=False), max_size=3
            )
        options.append(st.lists(NAMES, max_size=3) if of_names else numbers)
    if type(None) in kinds:
        options.append(st.none())
    return st.one_of(options)


# What cannot be written: text that means something else to OmegaConf (an interpolation, its mark of a missing value),
# and the one character that no file's name can hold.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).filter(
    lambda text: "${" not in text and text != "???"
)


def _fields(cls, given):
    """Return a strategy for a section of which the names of parts are given."""
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if "parts" not in field.metadata]
    values = {field.name: _valid(field, hints[field.name]) for field in fields}
    return st.fixed_dictionaries({}, optional=values).map(lambda section: given | section)


def _tree(names):
    """Return a strategy for the trees with certain parts."""
    names = current(names | STREAM)  # without names of what the named parts do not have
    schema = schema_of(names)
    sections = {section: _fields(cls, dict(names.get(section, {}))) for section, cls in schema.items()}
    return st.fixed_dictionaries(sections, optional={"seed": st.integers(0, 2**40)})


PARTS = {}
for owner in owners():
    for field in dataclasses.fields(owner.options):
        if "parts" in field.metadata and "replaces" not in field.metadata and owner.section != "stream":
            PARTS.setdefault(owner.section, {})[field.name] = _valid(field, str)
TREES_THAT_ARE_VALID = st.fixed_dictionaries(
    {section: st.fixed_dictionaries({}, optional=fields) for section, fields in PARTS.items()}
).flatmap(_tree)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES_THAT_ARE_VALID)
def test_resolved_configuration_written_as_yaml_loads_to_the_same(write, tree):
    from omegaconf import OmegaConf

    tree.get("tracking", {}).pop("uri", None)  # written without its secrets, and so as another one

    config = load_config(write(tree))
    for section, values in tree.items():
        found = config.seed if section == "seed" else to_dict(config)[section]
        if isinstance(values, dict):
            # A checksum that is not given is filled in where the weights are on this machine.
            given = {key: value for key, value in values.items() if (key, value) != ("sha256", None)}
            assert {key: found[key] for key in given} == given
        else:
            assert found == values
    resolved = write(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))), "resolved.yaml")  # as a run writes it
    assert load_config(resolved) == config
