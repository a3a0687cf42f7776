"""Files that a run hands over: weights of its model, and features of its stream, read by what they are for."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import cl_ovq


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    cl_ovq.run(tiny("model.name=resnet32", "strategy.batch_size=200", f"output_dir={folder}"), quiet=True)
    return folder


NETS = """from cl_ovq.models.resnet import ResNet

def Encoder():
    return ResNet(channels=1, n_classes=10, widths=(16, 32, 64), blocks=5, projected=False)
"""


def test_weights_of_a_run_are_an_encoder(call, trained, tmp_path):
    code, out, _ = call("weights", trained, "--output", "new/encoder.pth")
    assert (code, out.startswith("written: new/encoder.pth, 4")) == (0, True)
    state = torch.load(tmp_path / "new" / "encoder.pth", weights_only=True)
    model = cl_ovq.load(trained).model()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    (tmp_path / "nets.py").write_text(NETS)
    encoder = ("encoder.name=file", "encoder.model=./nets.py:Encoder", "encoder.weights=new/encoder.pth")
    (tmp_path / "stream.yaml").write_text("stream: {name: split_digits}\nmodel: {name: pixels}\n")
    options = (*encoder, "encoder.layer=stages", "encoder.cache=false", "--import", "nets.py")
    code, out, _ = call("features", "stream.yaml", *options, "--output", "digits.npz")
    assert (code, out.strip()) == (0, "written: digits.npz, 1,797 samples of 64 features")
    found = np.load(tmp_path / "digits.npz")
    pixels, targets = load_digits(return_X_y=True)
    with torch.no_grad():
        expected = model.features(torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8))
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-4)
    assert found["label"].tolist() == [str(target) for target in targets]
    config = {
        "stream": {"name": "features", "data": "digits.npz", "cache": False},
        "model": {"name": "pixels"},
        "strategy": {"name": "ridge"},
        "tracking": {"enabled": False},
        "figures": False,
    }
    again = cl_ovq.run(config, quiet=True)
    assert again.metrics["accuracy"] > 0.4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("weights", "nowhere", "--output", "x.pth"), "nowhere"),
        (("weights", "RUN", "--output", "x.npz"), "output: x.npz must end in .pth or .pt"),
        (("features", "quickstart", "--output", "x.csv"), "output: x.csv must end in .npz"),
        (("features", "paper/recall", "--output", "x.npz"), "stream.name: 'recall' has sequences"),
        (
            ("features", "quickstart", "stream.scenario=domain_incremental", "--output", "x.npz"),
            "stream.scenario: labels restart in each experience",
        ),
    ],
)
def test_mistakes(call, trained, tmp_path, arguments, line):
    code, _, error = call(*(str(trained) if argument == "RUN" else argument for argument in arguments))
    assert code == 2
    assert line in error
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(
    "command",
    [
        ("features", "quickstart", "--output", "x.npz"),
        ("pretrain", "in_context_digits", "learner.weights=gaussian_classes", "learner.steps=1", "--output", "x.pt"),
    ],
)
def test_threads_are_those_of_the_configuration(call, monkeypatch, tmp_path, command):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    assert call(*command, "threads=3")[0] == 0
    assert told[0] == 3  # kernels take fewer for small work, and give them back
