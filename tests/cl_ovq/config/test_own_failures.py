"""What the user's own parts raise is told in a line that names the part, the error and the place."""

import re
from contextlib import nullcontext

import pytest
import torch

from cl_ovq.config import load_config
from cl_ovq.encoders import ENCODERS, EncoderOptions, Source
from cl_ovq.encoders.preprocessing import Preprocessing
from cl_ovq.errors import UserError
from cl_ovq.imports import VARIABLE, import_parts
from cl_ovq.mixers import MIXERS
from cl_ovq.models import HEADS, build_model
from cl_ovq.models.saving import load_model, save_model
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.setup import build_strategy, load_stream
from cl_ovq.strategies import AUGMENTATIONS, OPTIMIZERS, SCHEDULES, STRATEGIES

OPTIONS = "from dataclasses import dataclass\n@dataclass\nclass O:\n    y: int = 3\n"
FAILS = "\ndef fails(*given, **named):\n    number = 0\n    return 1 / number\n"
PLACE = "ZeroDivisionError: division by zero (odd.py, line 4)"
MODEL_OF = "from torch import nn\nfrom cl_ovq.models import MODELS\nMODELS.enter('mine', '')"


@pytest.mark.parametrize(
    ("enters", "overrides", "line"),
    [
        ("cl_ovq.models import MODELS as R", ("model.name=mine",), "model.name: 'mine'"),
        ("cl_ovq.models import HEADS as R", ("model.name=mlp", "model.head=mine"), "model.head: 'mine'"),
        ("cl_ovq.mixers import MIXERS as R", ("model.mixer=mine",), "mixer 'mine'"),
        ("cl_ovq.strategies import STRATEGIES as R", ("strategy.name=mine",), "strategy.name: 'mine'"),
        ("cl_ovq.strategies import OPTIMIZERS as R", ("optimizer.name=mine",), "optimizer.name: 'mine'"),
        ("cl_ovq.strategies import SCHEDULES as R", ("optimizer.schedule=mine",), "optimizer.schedule: 'mine'"),
        (
            "cl_ovq.strategies import AUGMENTATIONS as R",
            ("training.augmentation=[mine]",),
            "training.augmentation: 'mine'",
        ),
        ("cl_ovq.encoders import ENCODERS as R", ("encoder.name=mine", "model.name=mlp"), "encoder.name: 'mine'"),
        ("streams import STREAMS as R", ("stream.name=mine",), "stream.name: 'mine'"),
        ("cl_ovq.metric_names import MATRIX_METRICS as R", (), "metric 'mine'"),
    ],
)
def test_what_a_part_of_ones_own_raises_is_told_with_its_place(lab, call, enters, overrides, line):
    registry = enters.split()[2]
    entry = {
        "STREAMS": "R['mine'] = StreamEntry(fails, O, '')",
        "ENCODERS": "R.enter('mine', '', options=EncoderOptions, find=fails)(fails)",
    }.get(registry, "R.enter('mine', '')(fails)")
    more = "from streams import StreamEntry\nfrom cl_ovq.encoders import EncoderOptions\n"
    (lab / "odd.py").write_text(f"from {enters}{FAILS}{more}{OPTIONS}{entry}\n")
    (lab / "plain.yaml").write_text("stream: {name: split_digits}\ntracking: {enabled: false}\n")
    if "stream.name=mine" not in overrides:
        overrides = ("stream.experiences=2", "strategy.batch_size=500", *overrides)
    code, out, error = call("run", "plain.yaml", "figures=false", *overrides, "--import", "odd.py")
    assert (code, out) == (2, ""), error
    assert error.splitlines()[-1] == f"error: {line}: {PLACE.replace('odd.py', str(lab / 'odd.py'))}"
    assert "Traceback" not in error


def test_a_builder_that_takes_something_else_is_told_where_it_is(lab, call):
    (lab / "odd.py").write_text(f"{MODEL_OF}(\n    lambda options: nn.Linear(1, 1)\n)\n")
    code, _, error = call("run", "own.yaml", "--import", "odd.py", "--import", "parts.py", "model.name=mine")
    assert (code, len(error.splitlines())) == (2, 1), error
    assert error.startswith("error: model.name: 'mine': TypeError: <lambda>() takes 1 positional argument but 2 were ")
    assert error.endswith(f"({lab / 'odd.py'}, line 4)\n")


def set_up(config):
    check_config(config)
    stream = load_stream(config)
    build_strategy(config, stream, build_model(config, stream), torch.device("cpu"))


@pytest.mark.parametrize(
    ("registry", "overrides", "line"),
    [
        (STRATEGIES, ("strategy.name=mine",), "strategy.name: 'mine' is built as a int, but must be a strategy of "),
        (
            OPTIMIZERS,
            ("optimizer.name=mine",),
            "optimizer.name: 'mine' is built as a int, but must be a torch",
        ),
        (
            SCHEDULES,
            ("optimizer.schedule=mine",),
            "optimizer.schedule: 'mine' is built as a int, but must be a",
        ),
        (
            AUGMENTATIONS,
            ("training.augmentation=[mine]",),
            "training.augmentation: 'mine' is built as a int, but must be a function",
        ),
        (HEADS, ("model.head=mine",), "model.head: 'mine' returns a int, but must assign the head to the network"),
        (
            ENCODERS,
            ("encoder.name=mine",),
            "encoder.name: what `find` of 'mine' returns is built as a int, but",
        ),
        (ENCODERS, ("encoder.name=built",), "encoder.name: 'built' is built as a int, but must be Built"),
    ],
)
def test_a_builder_that_makes_something_else_is_told_so(tiny, registry, overrides, line):
    def three(*given):
        return 3

    def nowhere(options, download):
        return Source((), {"preprocessing": Preprocessing(8, (), ()).facts}, 0)

    if registry is ENCODERS:
        lent = registry.lent("mine", "", build=three, options=EncoderOptions, find=three)
        more = registry.lent("built", "", build=three, options=EncoderOptions, find=nowhere)
    else:
        lent, more = registry.lent("mine", "", build=three), nullcontext()
    with lent, more, pytest.raises(UserError) as told:
        set_up(tiny("model.name=mlp", "model.head=linear", "strategy.name=naive", *overrides))
    assert str(told.value).startswith(line)


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        (
            "1 / 0",
            "model: Perceptron with model.head=mine does not take a batch of the stream",
        ),
        ("x[:, :3]", "model: Perceptron with model.head=mine maps 2 samples of 'split_digits' to [2, 3], but"),
    ],
)
def test_a_head_is_tried_where_it_was_put(lab, call, forward, line):
    (lab / "odd.py").write_text(
        "from torch import nn\nfrom cl_ovq.models import HEADS\nclass Head(nn.Module):\n    def forward(self, x):\n"
        f"        return {forward}\n"
        "@HEADS.enter('mine', '')\ndef build(options, network, stream):\n    network.head = Head()\n"
    )
    overrides = ("model.name=mlp", "model.head=mine", "stream.experiences=2", "tracking.enabled=false")
    code, out, error = call("run", "quickstart", *overrides, "--import", "odd.py")
    assert (code, out) == (2, ""), error
    assert error.splitlines()[-1].startswith(f"error: {line}")
    assert forward != "1 / 0" or error.endswith(f"({lab / 'odd.py'}, line 5)\n")


def test_a_strategy_that_is_a_class_of_another_kind(lab, call):
    (lab / "odd.py").write_text(
        "from cl_ovq.strategies import STRATEGIES\nSTRATEGIES.enter('mine', '')(type('A', (), {}))"
    )
    code, out, error = call("run", "quickstart", "strategy.name=mine", "--import", "odd.py")
    assert (code, out) == (2, ""), error
    assert (
        "TypeError: 'A' is registered as a strategy, but is not a cl_ovq.avalanche.Plugin: inherit"
        in error.splitlines()[-1]
    )


def test_a_saved_model_names_the_file_of_parts_that_it_needs(lab, monkeypatch):
    import_parts("parts.py", lab)
    config = load_config(lab / "own.yaml", ["strategy.name=naive"])
    stream = load_stream(config)
    save_model(lab / "model.pt", build_model(config, stream), config, stream)
    monkeypatch.delitem(MIXERS._parts, "scale")
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=rf"^model\.pt: .*'scale'.*--import {re.escape(str(lab / 'parts.py'))}"):
        load_model(lab / "model.pt")
