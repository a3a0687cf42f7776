"""The causal model of sequence streams: padding, pieces, matched numbers of weights, and what it refuses."""

import pytest
import torch
from quick_settings import built
from torch import nn

from cl_ovq.errors import UserError
from cl_ovq.mixers import MIXERS, dictionaries
from cl_ovq.models import SequenceModel, build_model
from cl_ovq.models.saving import load_model, save_model
from cl_ovq.models.sequence import count_parameters
from streams import PADDING, SplitOptions, build_stream
from streams.recall import RecallOptions
from streams.regression import RegressionOptions

SMALL = {"train": 4, "validation": 2, "test": 2, "experiences": 2}


@pytest.fixture(scope="module")
def recall():
    return build_stream("recall", RecallOptions(length=16, pairs=2, keys=12, values=12, **SMALL), seed=0)


@pytest.fixture(scope="module")
def regression():
    return build_stream("regression", RegressionOptions(examples=3, questions=2, **SMALL), seed=0)


def build(stream, scope="sequence", **changes):
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "convolution": 3, **changes}
    dictionary = {"scope": scope, "capacity": 8, "chunk_size": 4}
    return build_model(built("recall", model={"name": "sequence_model", **sizes}, dictionary=dictionary), stream)


@pytest.mark.parametrize("tied", [False, True])
def test_every_token_has_an_output_and_depends_on_its_past_alone(recall, tied):
    model = build(recall, pattern=["sliding_window", "ovq"], tied=tied).eval()
    x = recall.samples.gather(torch.arange(3))
    whole = model(x)
    assert whole.shape == (3, 16, 12 + 12 + 8)
    torch.testing.assert_close(model(x[:, :9]), whole[:, :9])
    assert tied == (model.head.weight is model.embedding.weight)
    # Logits of the size of one at first, also where the head is the embedding.
    assert 0.1 < whole.std() < 3


def test_vectors_have_one_number_for_an_output(regression):
    model = build(regression).eval()
    assert model(regression.samples.gather(torch.arange(3))).shape == (3, 8)


@pytest.mark.parametrize("mixer", MIXERS)
def test_pieces_are_the_whole(recall, mixer):
    model = build(recall, mixer=mixer, state_size=4, slots=4, codebook_size=6, window=5).eval()
    x = recall.samples.gather(torch.arange(3))
    with torch.no_grad():
        whole, _ = model.forward_with_state(x)
        first, states = model.forward_with_state(x[:, :7], return_state=True)
        second, states = model.forward_with_state(x[:, 7:], states, return_state=True)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, atol=1e-4, rtol=1e-4)
    assert model.state_bytes(16) == sum(state.nbytes for state in states) // 3


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(recall, mixer):
    model = build(recall, mixer=mixer, state_size=4, slots=4, codebook_size=6, window=5).eval()
    x = recall.samples.gather(torch.arange(3))
    padded = torch.cat((x, torch.full((3, 5), PADDING)), 1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, :16], model(x), atol=1e-5, rtol=1e-5)


def test_padding_is_not_written_into_a_shared_dictionary(recall):
    model = build(recall, scope="stream", depth=1)
    (dictionary,) = dictionaries(model).values()
    x = torch.cat((recall.samples.gather(torch.arange(2)), torch.full((2, 5), PADDING)), 1)
    with dictionary.recording():
        model(x)
    dictionary.write()
    assert dictionary.state.counts.sum(-1).flatten().tolist() == [32, 32]


@pytest.mark.parametrize("parameters", [20_000, 60_000])
def test_models_of_every_mixer_have_about_as_many_weights(recall, parameters):
    for mixer in MIXERS:
        model = build(recall, mixer=mixer, parameters=parameters, state_size=8, slots=8)
        assert count_parameters(model) == pytest.approx(parameters, rel=0.02), mixer


def test_matching_weights_does_not_change_how_they_are_drawn(recall):
    matched = build(recall, parameters=20_000)
    hidden = matched.blocks[0].mlp[0].out_features
    plain = build(recall, mlp_ratio=hidden / 16)
    for (name, a), b in zip(matched.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_weights_that_cannot_be_matched_are_a_mistake(recall):
    with pytest.raises(UserError, match=r"model\.parameters: 500 cannot be met within 2%: with the"):
        build(recall, parameters=500)


def test_models_and_streams_that_do_not_fit_are_mistakes(recall, regression):
    digits = build_stream("split_digits", SplitOptions(experiences=2), seed=0)
    with pytest.raises(UserError, match="'sequence_model' reads sequences, but 'split_digits' has images"):
        build(digits)
    for name in ("patch_transformer", "mlp", "pixels"):
        with pytest.raises(UserError, match=f"'{name}' reads images.*, but 'recall' has sequences"):
            _build_named(recall, name)
    with pytest.raises(UserError, match=r"model\.tied: 'regression' has vector inputs"):
        build(regression, tied=True)
    with pytest.raises(UserError, match=r"model\.head: a memory head predicts classes"):
        build(recall, head="memory")


def _build_named(stream, name):
    return build_model(built("recall", model={"name": name}), stream)


@pytest.mark.parametrize("kind", ["recall", "regression"])
def test_a_saved_model_answers_as_before(kind, recall, regression, tmp_path):
    stream = recall if kind == "recall" else regression
    config = built(
        kind, model={"name": "sequence_model", "width": 16, "heads": 2, "pattern": ["vq", "ovq"], "codebook_size": 5}
    )
    config.stream.options = (RecallOptions if kind == "recall" else RegressionOptions)(**SMALL)
    torch.manual_seed(0)
    model = build_model(config, stream).eval()
    save_model(tmp_path / "model.pt", model, config, stream)
    x = stream.samples.gather(torch.arange(3))
    assert torch.equal(load_model(tmp_path / "model.pt").model(x), model(x))


def test_the_model_is_one_module_whose_parts_are_found():
    model = SequenceModel(tokens=5, features=None, outputs=5, width=4, mixers=[], hidden=3)
    assert isinstance(model.embedding, nn.Embedding)
    assert model.state_bytes(100) == 0
