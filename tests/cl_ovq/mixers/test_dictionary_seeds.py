"""Which tokens seed slots at random is decided by the run's seed and the layer, and by nothing else."""

import pytest
import torch

from cl_ovq.mixers import OVQAttention
from cl_ovq.models import build_model
from cl_ovq.runs.setup import load_stream


@pytest.fixture(scope="module", params=["random", "kmeans++"])
def build(request, tiny):
    """`build(seed)`: the layers of a model of this run, all with the same weights whatever the seed and the layer."""
    stream = load_stream(tiny())

    def build(seed, scope="stream"):
        config = tiny(f"dictionary.slot_init={request.param}", f"seed={seed}", f"dictionary.scope={scope}")
        layers = [m for m in build_model(config, stream).modules() if isinstance(m, OVQAttention)]
        for layer in layers:
            torch.manual_seed(0)
            for parameter in layer.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        return layers

    return build


def written(layer):
    """The keys of its dictionary after a write."""
    torch.manual_seed(1)
    with layer.dictionary.recording():
        layer(torch.randn(8, 4, 16))
    layer.dictionary.write()
    return layer.dictionary.keys


def test_runs_and_layers_draw_differently_and_the_same_run_draws_the_same(build):
    first, again, other = (torch.stack([written(layer) for layer in build(seed)]) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    for of_first, of_other in zip(first, other, strict=True):
        assert not torch.equal(of_first, of_other)


def test_dictionaries_of_the_sequence_are_seeded_too(build):
    torch.manual_seed(1)
    x = torch.randn(2, 9, 16)
    outputs = [layer(x)[0] for seed in (3, 4, 3) for layer in build(seed, "sequence")]
    assert torch.equal(outputs[0], outputs[4])
    assert torch.equal(outputs[1], outputs[5])
    for one in range(4):
        for another in range(one):
            assert not torch.equal(outputs[one], outputs[another])


def test_layers_that_draw_nothing_share_what_is_compiled_for_their_options(tiny):
    model = build_model(tiny("seed=5", "dictionary.scope=stream"), load_stream(tiny()))
    assert {m.options.seed for m in model.modules() if isinstance(m, OVQAttention)} == {0}
