"""Features that are not learned, and the perceptron."""

import math

import numpy as np
import torch
from scipy.signal import correlate
from scipy.special import erf

from cl_ovq.models.fixed import RandomConvolution, RandomFeatures
from cl_ovq.models.perceptron import Perceptron


def test_random_features_are_gelu_of_a_linear_map():
    torch.manual_seed(0)
    features = RandomFeatures(pixels=12, features=30)
    x = torch.rand(5, 1, 3, 4)
    z = (2 * x.flatten(1).double().numpy() - 1) @ features.weight.double().numpy().T + features.bias.double().numpy()
    np.testing.assert_allclose(features(x).numpy(), z * (1 + erf(z / math.sqrt(2))) / 2, rtol=1e-4, atol=1e-5)
    assert not list(features.parameters())


def test_random_convolution_is_the_mean_absolute_response_of_a_cell():
    torch.manual_seed(0)
    features = RandomConvolution(channels=2, filters=3, size=6)
    weight = features.weight.double().numpy()
    np.testing.assert_allclose(weight.mean((1, 2, 3)), 0, atol=1e-7)
    np.testing.assert_allclose((weight**2).sum((1, 2, 3)), 1, rtol=1e-6)
    x = torch.rand(1, 2, 7, 7)
    padded = np.pad(x[0].double().numpy(), ((0, 0), (3, 3), (3, 3)))
    for f in range(3):
        response = np.abs(sum(correlate(padded[c], weight[f, c], mode="valid") for c in range(2)))  # [8, 8]
        cells = response.reshape(4, 2, 4, 2).mean((1, 3))
        np.testing.assert_allclose(features(x)[0].view(3, 4, 4)[f].numpy(), cells, rtol=1e-4, atol=1e-6)
    batch = torch.rand(150, 2, 7, 7)  # more than are looked at together
    batch[140] = x[0]
    torch.testing.assert_close(features(batch)[140], features(x)[0])


def test_perceptron_layers():
    model = Perceptron(sample_shape=(1, 4, 4), n_classes=3, width=7, depth=2)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(7, 16), (7,), (7, 7), (7,), (3, 7), (3,)]
    x = torch.rand(2, 1, 4, 4)
    w1, b1, w2, b2, w3, b3 = model.parameters()
    hidden = torch.relu(torch.relu(x.flatten(1) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(model(x), hidden @ w3.T + b3)
