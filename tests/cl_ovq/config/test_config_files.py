"""Files that are no experiments (studies, sweeps, published numbers): whatever is in them, a mistake is one line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_ovq.config.files import files_by_name
from cl_ovq.config.reading import read_override
from cl_ovq.errors import UserError
from cl_ovq.studies import load_study
from cl_ovq.studies.published import load_published
from cl_ovq.sweeps import load_sweep

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
