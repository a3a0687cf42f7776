"""Text is what was typed: on the command line, in every kind of YAML file, and on the way between them."""

import dataclasses
import shlex
import subprocess

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cl_ovq.config import load_config, to_dict
from cl_ovq.config.check import holds_text
from cl_ovq.config.files import read_mapping
from cl_ovq.config.keys import flatten
from cl_ovq.config.load import is_text, is_text_below, load_stream_config
from cl_ovq.config.parts import owners
from cl_ovq.config.reading import read_override, write_override
from cl_ovq.errors import UserError
from cl_ovq.studies import load_study
from cl_ovq.studies.published import load_published
from cl_ovq.sweeps import load_sweep

# What YAML takes for a number, a truth value, a date, a comment, a mapping, a list, an alias or a tag.
TYPED = [
    *("2026_11_26", "0123", "1e5", "1.10", "12:30:45", "001", "695e0514", "0x1F", "0b11", ".5", "+1", "1_0", ".inf"),
    *(".nan", "-", "true", "no", "On", "y", "2026-11-26", "=", "<<", "1e400", "9" * 400, "None", "nul", "a.b"),
]
MARKED = [
    *("exp #3", "#3", "a: b", "[a]", "{a: b}", "[", "&x", "*x", "!x", "|", ">", "%x", "@x", "`x`", "? x", "- x"),
    *("'", '"', "'a' and 'b'", '"a" #b', "a\\b", "a=b", " a ", "\ta", "a\nb", "a,b", "null null", "$x", "{", "é😀"),
]


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """`write(text)`: the path of a new file."""
    folder = tmp_path_factory.mktemp("texts")

    def write(text, name=None):
        path = folder / (name or f"{len(list(folder.iterdir()))}.yaml")
        path.write_text(text, encoding="utf-8")
        return path

    return write


# On the command line


@pytest.mark.parametrize("text", TYPED + MARKED)
def test_text_on_the_command_line_is_what_was_typed(text):
    config = load_config("quickstart", [f"output_dir={text}", f"tracking.run_name={text}", f"tracking.tags.run={text}"])
    assert (config.output_dir, config.tracking.run_name, config.tracking.tags) == (text, text, {"run": text})


@pytest.mark.parametrize("text", TYPED)
def test_text_in_lists_and_mappings_on_the_command_line(text):
    if text not in ("=", "<<", "-"):
        assert load_config("quickstart", [f"tracking.tags={{{text}: {text}}}"]).tracking.tags == {text: text}
    if text != "-":
        found = read_override(f"model.pattern=[{text}, softmax]", "a=1", is_text_below)
        assert found == ("model.pattern", [text, "softmax"])


@pytest.mark.parametrize("text", ["null", "~", "Null", "NULL"])
def test_null_is_none_unless_it_is_quoted(write, text):
    given = f"stream: {{name: split_digits}}\ntracking: {{run_name: {text}}}\nmodel: {{pattern: {text}}}"
    for config in (load_config("quickstart", [f"tracking.run_name={text}"]), load_config(write(given))):
        assert (config.tracking.run_name, config.model.pattern) == (None, None)
    for quoted in (f"'{text}'", f'"{text}"'):
        assert load_config("quickstart", [f"tracking.run_name={quoted}"]).tracking.run_name == text
        with pytest.raises(UserError, match=r"^tracking\.tags\.a: None is not text"):
            load_config("quickstart", [f"tracking.tags={{a: {text}}}"])


@pytest.mark.parametrize("key", ["output_dir", "tracking.run_name", "seed", "threads", "tracking.tags"])
def test_nothing_after_the_equals_sign_is_a_mistake(key):
    """As of `output_dir=$DIR` with a variable that is not set."""
    with pytest.raises(UserError, match=f"override '{key}= ?' has no value: write {key}=null for none"):
        load_config("quickstart", [f"{key}="])
    assert load_config("quickstart", ["tracking.run_name=''"]).tracking.run_name == ""


@pytest.mark.parametrize("override", ["output_dir=a\udcff", "tracking.tags={a: b\udcff}", "\udcff=1"])
def test_what_is_not_utf8_is_a_mistake(override):
    with pytest.raises(UserError, match=r"^cannot read the override '.*\\udcff.*': it is not valid UTF-8$") as caught:
        load_config("quickstart", [override])
    str(caught.value).encode()


@pytest.mark.parametrize("text", [r'"a\0b"', r'"\ud800"', r"\${seed}", r"a\${x"])
def test_what_no_file_can_hold_is_a_mistake(text):
    for key in ("tracking.run_name", "tracking.tags.a"):
        with pytest.raises(UserError, match=f"^{key}: ") as caught:
            load_config("quickstart", [f"{key}={text}"])
        str(caught.value).encode()


# Text that OmegaConf reads cannot stand for itself: an interpolation, and its mark of a missing value.
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(
    lambda text: "${" not in text and text != "???"
)
KEYS = ("tracking.run_name", "output_dir", "tracking.tags.a", "stream.data_dir", "device")


@settings(max_examples=100)
@example(text="", key="tracking.run_name")
@example(text="null", key="tracking.run_name")
@example(text="''", key="output_dir")
@example(text="'\n'", key="output_dir")
@given(text=ANY, key=st.sampled_from(KEYS))
def test_any_text_survives_the_command_line(text, key):
    """As it stands; only empty text, `null`, and what is in quotes of its own need YAML's quotes."""
    assert flatten(to_dict(load_config("split_fashion_mnist", [write_override(key, text, is_text_below)])))[key] == text
    plain = text.strip() and text not in ("null", "Null", "NULL", "~") and text[0] not in "'\""
    if plain:
        assert write_override(key, text, is_text_below) == f"{key}={text}"


@settings(max_examples=40)
@given(value=st.lists(ANY, max_size=3), tags=st.dictionaries(ANY, ANY, max_size=3))
def test_any_list_or_mapping_of_text_survives_the_command_line(value, tags):
    config = load_config("quickstart", [write_override("tracking.tags", tags, is_text_below)])
    assert config.tracking.tags == tags
    pattern = write_override("model.pattern", value, is_text_below)
    assert read_override(pattern, "a=1", is_text_below) == ("model.pattern", value)


@settings(max_examples=40)
@given(
    key=st.sampled_from(["seed", "x", "model.dropout"]),
    value=st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), ANY),
)
def test_any_other_value_survives_the_command_line(key, value):
    assert read_override(write_override(key, value), "a=1") == (key, value)


def test_a_shell_hands_over_what_a_person_quotes():
    words = ["run_name='exp #3'", "run_name=2026_11_26", 'run_name="it\'s"', "run_name=a:b"]
    handed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {' '.join(words)}"], capture_output=True, text=True, check=True
    )
    found = [load_config("quickstart", [f"tracking.{line}"]).tracking.run_name for line in handed.stdout.splitlines()]
    assert found == ["exp #3", "2026_11_26", "it's", "a:b"]
    assert shlex.split(" ".join(words)) == handed.stdout.splitlines()


# In files


@pytest.mark.parametrize("text", TYPED)
def test_text_in_a_file_and_in_one_that_it_includes(write, text):
    if text == "-":
        pytest.skip("begins a list in YAML")
    body = f"stream: {{name: split_mnist, data_dir: {text}}}\noutput_dir: {text}\ndevice: {text}\n"
    if text not in ("=", "<<"):
        body += f"tracking: {{run_name: {text}, tags: {{{text}: {text}}}}}\n"
    listed = write(f"model: {{pattern: [{text}]}}\n")
    assert text in ("=", "<<") or read_mapping(listed, is_text) == {"model": {"pattern": [text]}}
    base = write(body)
    for path in (base, write(f"include: {base.name}\nseed: 3")):
        config = load_config(path)
        assert (config.output_dir, config.device, config.stream.options.data_dir) == (text, text, text)
        if text not in ("=", "<<"):
            assert (config.tracking.run_name, config.tracking.tags) == (text, {text: text})


def test_aliases_and_merges_take_the_type_of_where_they_stand(write):
    path = write(
        "stream: {name: split_digits}\n"
        "seed: &number 12\n"
        "output_dir: *number\n"
        "strategy: &shared {epochs: 3}\n"
        "model: {<<: {width: 8}, depth: 2}\n"
        "tracking: {<<: {run_name: 1.10}, tags: &tags {a: 001, b: 2}}\n"
    )
    config = load_config(path)
    assert (config.seed, config.output_dir, config.tracking.tags) == (12, "12", {"a": "001", "b": "2"})
    assert (config.model.width, config.tracking.run_name, config.strategy.epochs) == (8, "1.10", 3)


@pytest.mark.parametrize("text", ["010", "12:30", "1:30:45", "2026-11-26", "0o10", "-01"])
def test_numbers_that_yaml_reads_in_another_base_are_mistakes(write, text):
    for path, overrides in (
        ("quickstart", [f"seed={text}"]),
        (write(f"stream: {{name: split_digits}}\nseed: {text}"), []),
    ):
        with pytest.raises(UserError, match=f"^seed: '{text}' is not a whole number"):
            load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E2", 100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1.5", 1.5),
        ("1_000.5", 1000.5),
        ("3", 3.0),
        ("0", 0.0),
    ],
)
def test_numbers_are_read_as_numbers(text, value):
    overrides = ["strategy.name=si", f"strategy.damping={text}"] if value else ["seed=0"]
    assert load_config("quickstart", overrides) is not None
    assert read_override(f"x={text}", "a=1") == ("x", value)


# In files of sweeps, studies and published numbers


def test_text_in_a_sweep_file(write):
    path = write(
        "title: 2026_11\n"
        "experiment: quickstart\n"
        "set: {tracking.tags: {run: 001}, stream.data_dir: null, device: cpu}\n"
        "reuse: 1_000\n"
        "space:\n"
        "  tracking.run_name: {choice: [1e5, 012, null]}\n"
        "  model.width: {choice: [16, 32], when: {tracking.run_name: [012]}}\n"
        "  tracking.experiment: {choice: [no], when: {tracking.run_name: 1e5}}\n"
        "search: {name: grid}\n"
    )
    sweep = load_sweep(str(path), ["optimizer.name=sgd", "tracking.tags.more=1.10", "cluster.storage=0777"])
    assert (sweep.title, sweep.reuse, sweep.cluster.storage) == ("2026_11", "1_000", "0777")
    name, width, experiment = sweep.space.parameters
    assert name.values == ("1e5", "012", None)
    assert (width.values, width.when, experiment.values) == ((16, 32), {"tracking.run_name": ("012",)}, ("no",))
    config = sweep.config({"tracking.run_name": "1e5"}, 0)
    assert config.tracking.run_name == "1e5"
    assert dict(config.tracking.tags) == {"run": "001", "more": "1.10"}
    more = load_sweep(str(path), ["space.tracking.run_name={choice: [007, 2_0]}", "space.model.width=null"])
    assert more.space.parameters[0].values == ("007", "2_0")


def test_text_in_a_study_file(write):
    path = write(
        "title: 007\n"
        "seeds: 1\n"
        "set: {tracking.tags: {run: 001}}\n"
        "tuning: {grid: {tracking.run_name: [1e5, 012]}}\n"
        "refit: {model: 1.10}\n"
        "grids:\n"
        "- 2026: {010: {experiment: quickstart, tracking.experiment: 12:30}}\n"
        "  model: {1.10: {strategy.epochs: 2}, 1e3: {tune: {tracking.run_name: [1_0]}}}\n"
    )
    study = load_study(str(path), ["tracking.uri=0x1"])
    assert (study.title, study.axes, study.refit) == ("007", ["2026", "model"], {"model": "1.10"})
    first, second = study.rows
    assert (first.name, second.name) == ("010, 1.10", "010, 1e3")
    assert [row.points for row in (first, second)] == [
        [{"tracking.run_name": "1e5"}, {"tracking.run_name": "012"}],
        [{"tracking.run_name": "1_0"}],
    ]
    config = first.config(first.points[0], 0, "test")
    assert (config.tracking.run_name, config.tracking.experiment, config.tracking.uri) == ("1e5", "12:30", "0x1")
    assert (dict(config.tracking.tags), config.strategy.epochs) == ({"run": "001"}, 2)


def test_text_in_a_file_of_a_published_number(write):
    path = write(
        "title: 1e5\nsource: 2026_11\nexperiment: quickstart\ntarget: {accuracy: 0.5, within: 0.1}\n"
        "set: {tracking.tags: {run: 0123}}"
    )
    (target,) = load_published([path])
    assert (target.title, target.source) == ("1e5", "2026_11")
    assert dict(target.row.config({}, 0, "test").tracking.tags) == {"run": "0123"}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=ANY.filter(bool), label=ANY)
def test_any_text_survives_studies_and_sweeps(write, text, label):
    """What a file says reaches the run through overrides, and the command that a sweep prints."""
    common = {"tracking.run_name": text, "tracking.tags": {"a": text}}
    grid = {"axis": {label: {"experiment": "quickstart", **common}}}
    study = load_study(str(write(yaml.safe_dump({"grids": [grid]}), "study.yaml")))
    sweep = load_sweep(
        str(
            write(
                yaml.safe_dump(
                    {
                        "experiment": "quickstart",
                        "set": {"tracking.tags": {"a": text}},
                        "space": {"tracking.run_name": {"choice": [text]}},
                        "search": {"name": "grid"},
                    }
                ),
                "sweep.yaml",
            )
        )
    )
    (row,), (point,) = study.rows, sweep.points()
    assert row.labels == {"axis": label}
    for config in (row.config({}, 0, "test"), sweep.config(point, 0)):
        assert (config.tracking.run_name, dict(config.tracking.tags)) == (text, {"a": text})


def test_an_option_is_text_in_all_parts_or_lists_of_texts_in_some():
    found = {}
    for owner in owners():
        for field in dataclasses.fields(owner.options):
            of_text = holds_text(owner.options, [field.name]) or holds_text(owner.options, [field.name, 0])
            found.setdefault((owner.section, field.name), set()).add(of_text)
    assert [key for key, kinds in found.items() if len(kinds) > 1] == []


def test_what_is_a_text_of_one_stream_and_a_list_of_another(tmp_path):
    assert load_stream_config("text", ["domains=[licences, 012]"]).stream.options.domains == ["licences", "012"]
    assert load_stream_config("features", ["data=012"]).stream.options.data == "012"
