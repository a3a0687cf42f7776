"""Names, options, and what an import costs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

import streams
from streams.options import checked_options


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_and_listing_imports_nothing_slow():
    code = (
        "import sys, streams\n"
        "for entry in streams.STREAMS.values(): entry.Options(), entry.summary\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = run_python(code)
    for name in ("torch", "torchvision", "avalanche", "sklearn", "numpy", "omegaconf", "cl_ovq", "kernels"):
        assert f"'{name}'" not in loaded
    assert "'streams'" in loaded


def test_building_does_not_need_the_platform():
    code = (
        "import sys, streams\n"
        "stream = streams.build_stream('split_digits', seed=0)\n"
        "print(isinstance(stream.samples, streams.TensorSamples), [m in sys.modules for m in ('cl_ovq', 'kernels')])"
    )
    assert run_python(code).splitlines()[-1] == "True [False, False]"


def test_public_names():
    assert streams.__project__ == "cl-ovq"
    assert all(hasattr(streams, name) for name in streams.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        streams.nothing_like_this  # noqa: B018
    assert issubclass(streams.StreamDataError, ValueError)


def test_unknown_name():
    known = ", ".join(sorted(streams.STREAMS))
    with pytest.raises(ValueError, match=rf"^unknown stream 'split_digit'; known streams: {known}$"):
        streams.build_stream("split_digit", seed=0)


@pytest.mark.parametrize(
    "name", ["split_digits", "recall", "positional_recall", "rebinding", "regression", "needle", "sine", "text"]
)
def test_the_registry_says_of_what_kind_a_stream_is(name):
    assert streams.build_stream(name, seed=0).kind == streams.STREAMS[name].kind


@pytest.mark.parametrize("name", streams.STREAMS)
def test_every_option_is_documented_and_defaulted(name):
    entry = streams.STREAMS[name]
    assert "\n" not in entry.summary
    for option in dataclasses.fields(entry.Options):
        assert option.metadata["help"]
        assert "\n" not in option.metadata["help"]
        assert option.metadata.keys() <= {"help", "choices", "minimum", "exclusive_minimum", "maximum"}
    assert checked_options(entry.Options, None) == entry.Options()


def test_options_come_from_omegaconf():
    node = OmegaConf.merge(
        OmegaConf.structured(streams.SplitOptions),
        OmegaConf.create("{experiences: 4, class_order: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], scenario: task_incremental}"),
    )
    assert type(checked_options(streams.SplitOptions, node).class_order) is list
    stream = streams.build_stream("split_digits", node, seed=0)
    assert stream.scenario == "task_incremental"
    assert stream.original_classes == ((9, 8, 7), (6, 5, 4), (3, 2), (1, 0))
    with pytest.raises(Exception, match="not_an_option"):
        OmegaConf.merge(OmegaConf.structured(streams.SplitOptions), {"not_an_option": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "class-incremental"}, "scenario='class-incremental': choose one of class_incremental, domain_"),
        ({"experiences": 0}, "experiences=0: must be at least 1"),
        ({"validation_fraction": -0.1}, "validation_fraction=-0.1: must be at least 0"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0: must be at most 0.9"),
        ({"validation_fraction": float("nan")}, "validation_fraction=nan: must be at least 0"),
    ],
)
def test_options_are_validated(changes, message):
    with pytest.raises(streams.StreamDataError) as error:
        streams.build_stream("split_digits", streams.SplitOptions(**changes), seed=0)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in streams.STREAMS if name.endswith("_digits")])
def test_an_option_that_a_stream_does_not_use_is_refused(name):
    """Digits come installed: a folder for them would be passed over, and other data be trained on than was named."""
    options = dataclasses.make_dataclass("Options", [*fields_of(name), ("data_dir", str, "my/images")])
    with pytest.raises(
        streams.StreamDataError, match=r"^data_dir='my/images': this stream has no such option: known: "
    ):
        streams.build_stream(name, options(), seed=0)
    nothing = dataclasses.make_dataclass("Options", [*fields_of(name), ("data_dir", str, None)])
    assert streams.build_stream(name, nothing(), seed=0).n_classes == 10


def fields_of(name):
    return [(field.name, field.type, field) for field in dataclasses.fields(streams.STREAMS[name].Options)]


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("split_digits", {"blur": 0.5, "experiences": 1}, "blur=0.5: a single experience has no boundaries to blur"),
        ("rotated_digits", {"blur": 0.5, "experiences": 1}, "blur=0.5: a single experience has no boundaries to blur"),
        ("recall", {"blur": 0.5, "experiences": 1}, "blur=0.5: a single experience has no boundaries to blur"),
        ("text", {"data": ["."], "domains": ["source"]}, "domains: cannot be combined with data"),
    ],
)
def test_an_option_that_would_do_nothing_beside_another_is_refused(name, changes, line):
    with pytest.raises(streams.StreamDataError, match=f"^{line}"):
        streams.build_stream(name, streams.STREAMS[name].Options(**changes), seed=0)


def test_exclusive_minimum():
    @dataclasses.dataclass
    class Options:
        rate: float = dataclasses.field(default=1.0, metadata={"exclusive_minimum": 0.0})

    assert checked_options(Options, Options(0.5)).rate == 0.5
    with pytest.raises(streams.StreamDataError, match=r"^rate=0.0: must be greater than 0.0$"):
        checked_options(Options, Options(0.0))
