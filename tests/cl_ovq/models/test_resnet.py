"""Residual networks for small images, against torchvision's and the papers' numbers."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from cl_ovq.models import MODELS, ModelContext
from cl_ovq.models.normalisation import count_statistics, running_statistics
from cl_ovq.models.resnet import BatchNorm, ResidualBlock
from cl_ovq.options import NoOptions


def made(name, classes=10, channels=3, size=32):
    samples = SimpleNamespace(sample_shape=(channels, size, size))
    stream = SimpleNamespace(samples=samples, n_classes=classes, kind="classes")
    torch.manual_seed(0)
    return MODELS[name].build(NoOptions(), ModelContext(stream))


@pytest.mark.parametrize(
    ("name", "classes", "weights"),
    [
        ("resnet32", 10, 464_154),  # 0.46 M (He et al. 2016, table 6)
        ("resnet32", 100, 470_004),
        ("resnet18", 10, 11_173_962),  # 11.17 M, of which 11.2 M in tables
        ("resnet18", 100, 11_220_132),
    ],
)
def test_number_of_weights(name, classes, weights):
    assert sum(weight.numel() for weight in made(name, classes).parameters()) == weights


@pytest.mark.parametrize(("name", "layers"), [("resnet32", 32), ("resnet18", 18)])
def test_number_of_layers(name, layers):
    """Shortcuts apart, as the papers count."""
    modules = {key: part for key, part in made(name).named_modules() if "projection" not in key}
    assert sum(isinstance(part, nn.Conv2d | nn.Linear) for part in modules.values()) == layers


def test_resnet18_is_torchvisions_with_another_entrance():
    model = made("resnet18")
    other = torchvision.models.resnet18(num_classes=10)
    other.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    other.maxpool = nn.Identity()
    ours, theirs = model.state_dict(), other.state_dict()
    # Both list a block's layers in the order in which they come.
    assert [part.shape for part in ours.values()] == [part.shape for part in theirs.values()]
    other.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(model(x), other(x))
    torch.testing.assert_close(model.eval()(x), other.eval()(x))


def test_resnet32_has_shortcuts_without_weights():
    block = ResidualBlock(inputs=4, outputs=8, stride=2, projected=False).eval()
    nn.init.zeros_(block.second_norm.weight)
    x = torch.randn(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2].clamp(min=0)
    assert torch.equal(block(x), expected)
    assert [block.stride for block in made("resnet32").stages] == [1] * 5 + [2, 1, 1, 1, 1] * 2


@pytest.mark.parametrize(("name", "width"), [("resnet32", 64), ("resnet18", 512)])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (2, 9)])
def test_features_of_images_of_any_size(name, width, channels, size):
    model = made(name, 7, channels, size)
    x = torch.rand(3, channels, size, size)
    assert model.features(x).shape == (3, width)
    assert torch.equal(model.eval()(x), model.head(model.features(x)))


def test_a_single_sample_of_a_single_pixel_is_no_mistake():
    """As the last batch of an epoch may be, in the last stage of resnet18 on images of 8 x 8."""
    norm, x = BatchNorm(5), torch.randn(1, 5, 1, 1)
    norm(torch.randn(64, 5, 1, 1))
    before = {name: part.clone() for name, part in norm.state_dict().items()}
    found = norm(x)
    assert torch.equal(found, norm.eval()(x))
    assert all(torch.equal(part, before[name]) for name, part in norm.state_dict().items())
    assert made("resnet18", channels=1, size=8).train()(torch.rand(1, 1, 8, 8)).isfinite().all()


def test_statistics_are_counted_apart():
    model = made("resnet32")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert count_statistics(model) == sum(2 * norm.num_features for norm in norms) == 2 * 16 * 11 + 2 * (32 + 64) * 10
    assert running_statistics(model).keys() == dict(model.named_buffers()).keys()
    assert count_statistics(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))) == 0
