"""What a model of the user's own must be for its run is told in a line before anything is trained."""

import copy

import pytest
import torch
from torch import nn

import cl_ovq
from cl_ovq.evaluation.probes import can_probe
from cl_ovq.runs.contract import check_contract
from cl_ovq.runs.setup import load_stream


class NoHead(nn.Module):
    def __init__(self, stream=None):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(x.flatten(1))


class WithHead(nn.Module):
    def __init__(self, stream=None):
        super().__init__()
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))


class Pictures(WithHead):
    def features(self, x):
        return self.body(x.flatten(1)).view(-1, 8, 8)


class Pair(WithHead):
    def features(self, x):
        return self.body(x.flatten(1)), None


class Counted(WithHead):
    def features(self, x):
        return self.body(x.flatten(1)).long()


class Others(WithHead):
    def features(self, x):
        return self.body(x.flatten(1)).relu()


class Wrong(WithHead):
    def features(self, x):
        return 1 / 0


class Severed(WithHead):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Apart(WithHead):
    def forward(self, x):
        return self.head(self.body(x.flatten(1)).detach())


class Fussy(WithHead):
    def forward(self, x):
        if self.training:
            raise ValueError("fussy")
        return super().forward(x)


IN_CONTEXT = {"strategy.name": "in_context", "dictionary.scope": "sequence"}
CALIBRATED = {"model.head": "memory", "memory.calibrate": True}


class Inward(NoHead):
    def forward(self, x):
        raise ValueError("inward")


MISTAKES = [
    (
        {},
        {"model": lambda stream: stream.nothing},
        r"^model: .*<lambda>: AttributeError: .*'nothing' \(.*test_contract\.py, line \d+\)$",
    ),
    ({}, {"model": Inward}, r"^model: Inward does not take .*: ValueError: inward \(.*test_contract\.py, line \d+\)$"),
    *(
        (CALIBRATED, {"model": model}, rf"^model: {model.__name__}\.features {line}, which memory.calibrate needs$")
        for model, line in (
            (
                Pictures,
                r"maps 2 samples of 'split_digits' to \[2, 8, 8\], but must map them to .*: what `head` is given",
            ),
            (Pair, r"maps .* to a tuple, but must map them to \[2, 64\]: what `head` is given"),
            (Counted, r"maps .* to torch.int64 \[2, 64\], but must map them to floats \[2, 64\]: what `head` is given"),
            (Others, r"returns different values than what `head` is given"),
        )
    ),
    (
        CALIBRATED,
        {"model": Wrong},
        r"^model: Wrong\.features does not take a batch .*: ZeroDivisionError: division by zero \(.*py, line \d+\)$",
    ),
    (
        IN_CONTEXT,
        {"model": WithHead},
        "^model: WithHead has no method `features`, which strategy.n",
    ),
    (IN_CONTEXT, {"model": NoHead}, "NoHead has no last layer `head`"),
    ({"strategy.name": "slca"}, {"model": NoHead}, "which strategy.name=slca needs"),
    (
        {},
        {"model": Severed},
        "^model: no gradient reaches a parameter of Severed in training, which strategy",
    ),
    (
        {"model.head": "memory"},
        {"model": Apart},
        "^model: no gradient reaches a parameter of Apart but those of `head` in training, which model.head=memory "
        "with model.train_encoder=always needs: use model.train_encoder=never",
    ),
    (
        {"model.train_encoder": "first_experience"},
        {"model": Apart},
        "^model: no gradient reaches a parameter of Apart but those of `head` .*=first_experience needs: use ",
    ),
    ({}, {"model": Fussy}, r"^model: Fussy does not take a batch .* in training mode: ValueError: fussy \("),
]


@pytest.mark.parametrize(("overrides", "objects", "line"), MISTAKES)
def test_mistakes(tiny_path, tmp_path, overrides, objects, line):
    with pytest.raises(cl_ovq.UserError, match=line) as refusal:
        cl_ovq.run(tiny_path, {**overrides, "output_dir": str(tmp_path / "out")}, **objects)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.*"))


class Normed(WithHead):
    """Its statistics change in training mode, and it counts its passes."""

    def __init__(self, stream=None):
        super().__init__(stream)
        self.norm, self.drop = nn.BatchNorm1d(64), nn.Dropout()

    def features(self, x):
        return self.drop(self.norm(self.body(x.flatten(1))))

    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            return self.head(self.features(x))


@pytest.mark.parametrize("overrides", [{}, CALIBRATED])
def test_a_model_is_tried_without_a_trace(tiny, overrides):
    network = Normed().eval()
    network.drop.train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    config = tiny(*(f"{key}={value}" for key, value in overrides.items()))
    check_contract(network, config, load_stream(config))
    assert torch.equal(torch.get_rng_state(), state)
    assert (network.training, network.norm.training, network.drop.training) == (False, False, True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())


def test_only_vectors_are_probed(tiny):
    stream = load_stream(tiny())
    probed = {kind: can_probe(kind(), stream, torch.device("cpu")) for kind in (Others, Pictures, Pair, WithHead)}
    assert [kind for kind, found in probed.items() if found] == [Others]
    with pytest.raises(cl_ovq.UserError, match=r"^model: Wrong\.features: ZeroDivisionError: .*py, line \d+\)$"):
        can_probe(Wrong(), stream, torch.device("cpu"))


def test_a_model_whose_encoder_rests_by_its_own_code_is_trained(tiny):
    """Its head is; nothing else is asked for."""
    config = tiny("strategy.name=naive")
    check_contract(Apart(), config, load_stream(config))
