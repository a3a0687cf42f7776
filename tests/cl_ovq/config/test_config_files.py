"""Files of experiments, studies, sweeps and published numbers: whatever is in them, a mistake is one line."""

import pytest
from config_helpers import STREAM, known, mistake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_ovq.config.files import files_by_name
from cl_ovq.config.reading import read_override
from cl_ovq.errors import UserError
from cl_ovq.studies import load_study
from cl_ovq.studies.published import load_published
from cl_ovq.sweeps import load_sweep
from streams import STREAMS

LOADERS = {"study": load_study, "sweep": load_sweep, "published": lambda name: load_published([name])}
loaders = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


@loaders
@pytest.mark.parametrize("content", ["0", "[1]", "", "a: [", "\x00", "text", '"3"', "a: 1\n---\nb: 2", "? [a]\n: b"])
def test_a_file_that_holds_something_else(tmp_path, load, content):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as found:
        load(str(path))
    assert len(str(found.value).splitlines()) == 1


@loaders
@pytest.mark.parametrize("name", ["nothing", "n" * 5000, "a\0b"])
def test_a_name_that_no_file_has(load, name):
    with pytest.raises(UserError, match=r"^no (study|sweep|published number) '") as found:
        load(name)
    assert len(str(found.value).splitlines()) == 1


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.text(max_size=12))
def test_any_override_is_read_or_a_mistake(text):
    key, mistake = text.partition("=")[0], ""
    try:
        key, _ = read_override(text, "a=1")
    except UserError as error:
        mistake = str(error)
    assert text.startswith(f"{key}=") or mistake
    assert len(mistake.splitlines()) <= 1


def test_the_first_folder_counts(tmp_path):
    for folder, names in (("a", ("x", "y")), ("b", ("y", "z"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.yaml").write_text("")
    found = files_by_name([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert {name: path.parent.name for name, path in found.items()} == {"x": "a", "y": "a", "z": "b"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("stream: [1", "is not valid YAML: "),
        ("stream:\n\t- 1", "is not valid YAML: "),
        ("a: b: c", "line 1"),
        (b"\xff\xfe\xfa", "is not valid YAML: "),
        (b"\x00", "is not valid YAML: "),
        ("a: &x [*x]", "is not valid YAML: "),
        ("? [a]\n: b", "is not valid YAML: "),
        ("seed: !!python/object/apply:os.getcwd []", "is not valid YAML: "),
        ("seed: 1" + "0" * 5000, "is not valid YAML: "),
        ("seed: 1\nseed: 2", "duplicate key"),
        ("a: 1\n---\nb: 2", "is not valid YAML: "),
        ("[1, 2]", "does not contain a mapping"),
        ("5", "does not contain a mapping"),
        ("text", "does not contain a mapping"),
        ("", f"stream.name is missing: {known(STREAMS)}"),
        ("model: {width: 8}", f"stream.name is missing: {known(STREAMS)}"),
    ],
)
def test_file_that_is_no_configuration(write, content, part):
    path = write(content)
    line = mistake(path)
    assert part in line
    assert line.startswith((str(path), "stream.name"))


def test_missing_file(tmp_path):
    assert "did you mean 'quickstart'?" in mistake("quickstrat")
    assert "did you mean 'quickstart'?" in mistake("experiments/quickstrat.yaml")
    assert f"no experiment '{tmp_path / 'no.yaml'}'" in mistake(tmp_path / "no.yaml")


@pytest.mark.parametrize("name", [".", "..", "", "/", "a\0b", "x" * 5000, "experiments"])
def test_name_that_no_experiment_can_have(name):
    assert mistake(name).startswith("no experiment '")


def test_directory_is_not_a_file(tmp_path):
    assert mistake(tmp_path).startswith(f"no experiment '{tmp_path}'")


def test_include_of_a_missing_file(write, tmp_path):
    path = write({"include": "base.yaml"})
    assert mistake(path) == f"{path} includes 'base.yaml', but there is no file {tmp_path / 'base.yaml'}"
    for name in (".", "x" * 5000, ["a"], 5):
        assert "but there is no file" in mistake(write({"include": name}))


def test_include_within_an_include(write):
    write(STREAM, "deepest.yaml")
    base = write({"include": "deepest.yaml"}, "base.yaml")
    expected = (
        f"{base} is included by another file, so it cannot include 'deepest.yaml': only one level of includes is "
        "allowed"
    )
    assert mistake(write({"include": "base.yaml"})) == expected


def test_mistake_in_an_included_file_names_that_file(write):
    base = write("stream: [", "base.yaml")
    assert mistake(write({"include": "base.yaml"})).startswith(f"{base} is not valid YAML")


def test_include_that_does_not_fit(write):
    write(STREAM | {"model": {"width": 8}}, "base.yaml")
    path = write({"include": "base.yaml", "model": [1]})
    assert mistake(path).startswith("model: '[1]' is not a section")
