"""Encoders of texts: what scikit-learn and transformers compute themselves, called by hand."""

import json

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from text_helpers import WORDS, save_bert

from cl_ovq.encoders.base import ENCODERS
from cl_ovq.encoders.frozen import named_encoder, state_of
from cl_ovq.errors import UserError

TEXTS = [
    "the cat sat on the mat",
    "a bird flew over the red tree and then slept under a blue log",
    "dog",
    "Größe, 花 and 🙂: I",
    " ".join(WORDS * 2),  # longer than is read
    "the dog ran",
]


def encoder(name, **options):
    return named_encoder(name, ENCODERS[name].Options(**options), None)


def refused(name, **options):
    with pytest.raises(UserError) as error:
        encoder(name, **options).network()(TEXTS)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("words", "characters"), [(1, 5), (2, 0), (0, 3)])
def test_hashed_ngrams_are_those_of_scikit_learn(words, characters):
    network = encoder("hashed_ngrams", features=101, word_ngrams=words, character_ngrams=characters).network()
    size = 51 if words and characters else 101
    parts = []
    if words:
        pattern = r"(?u)\b\w+\b"
        parts.append(HashingVectorizer(n_features=size, ngram_range=(1, words), token_pattern=pattern))
    if characters:
        parts.append(HashingVectorizer(n_features=101 - size or 101, ngram_range=(2, characters), analyzer="char_wb"))
    expected = np.concatenate([part.transform(TEXTS).toarray() for part in parts], axis=1)
    found = network(TEXTS)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    assert torch.equal(torch.cat([network([text]) for text in TEXTS]), found)
    assert network.truncation(TEXTS) == {}


def test_letters_count_as_words():
    one, other = encoder("hashed_ngrams", character_ngrams=0).network()(["vitamin c", "vitamin d"])
    assert not torch.equal(one, other)


def test_mistakes_with_ngrams_are_one_line():
    assert "encoder.word_ngrams: is 0, and so is" in refused("hashed_ngrams", word_ngrams=0, character_ngrams=0)
    assert "encoder.character_ngrams: must be 0, or at least 2" in refused("hashed_ngrams", character_ngrams=1)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bert(transformers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folder, *save_bert(folder)


@torch.no_grad()
def by_hand(model, tokenizer, pool, max_length):
    """The features of each text by itself: nothing is padded, and nothing is masked."""
    found = []
    for text in TEXTS:
        tokens = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state[0]
        found.append(hidden[0] if pool == "first" else hidden.mean(0))
    return torch.stack(found)


@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("max_length", [None, 5])
@torch.no_grad()
def test_a_bert_as_the_library_calls_it(bert, pool, max_length):
    folder, model, tokenizer = bert
    found = encoder("huggingface_text", weights=str(folder), pool=pool, max_length=max_length)
    network = found.network()
    features = network.train()(TEXTS)  # without dropout all the same
    assert torch.allclose(features, by_hand(model, tokenizer, pool, max_length or 20), rtol=1e-4, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 0.01  # they are not all alike
    longer = sum(len(tokenizer(text)["input_ids"]) > (max_length or 20) for text in TEXTS)
    assert 0 < longer < len(TEXTS)
    assert network.truncation(TEXTS) == {"max_tokens": max_length or 20, "truncated": longer}
    assert torch.equal(found.restored(state_of(network))(TEXTS), features)


@torch.no_grad()
def test_a_batch_of_one_gives_the_features_of_a_large_one(bert):
    network = encoder("huggingface_text", weights=str(bert[0])).network()
    alone = torch.cat([network([text]) for text in TEXTS])
    assert torch.allclose(network(TEXTS), alone, rtol=1e-4, atol=1e-5)
    half = encoder("huggingface_text", weights=str(bert[0]), precision="bfloat16").network()(TEXTS)
    assert half.dtype == torch.float32
    assert torch.allclose(half, alone, rtol=0.05, atol=0.1)
    assert not torch.equal(half, alone)


@torch.no_grad()
def test_a_model_that_continues_text_has_no_padding_of_its_own(transformers, bert, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert[0], padding_side="left")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2Model(config).eval()
    model.save_pretrained(tmp_path)
    found = encoder("huggingface_text", weights=str(tmp_path)).network()(TEXTS)
    expected = by_hand(model, tokenizer, "mean", 20)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_of_an_encoder_and_a_decoder_the_encoder_is_taken(transformers, bert, tmp_path):
    bert[2].save_pretrained(tmp_path)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(1)
    model = transformers.T5Model(transformers.T5Config(vocab_size=40, **sizes)).eval()
    model.save_pretrained(tmp_path)
    found = encoder("huggingface_text", weights=str(tmp_path)).network()(TEXTS)
    tokens = [bert[2](text, truncation=True, max_length=20, return_tensors="pt")["input_ids"] for text in TEXTS]
    expected = torch.stack([model.encoder(input_ids=ids).last_hidden_state[0].mean(0) for ids in tokens])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_other_words_of_the_tokenizer_are_another_encoder(transformers, tmp_path):
    save_bert(tmp_path)
    first = encoder("huggingface_text", weights=str(tmp_path)).sha256
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"bird"', '"byrd"'))
    assert encoder("huggingface_text", weights=str(tmp_path)).sha256 != first


def test_mistakes_with_transformers_are_one_line(transformers, tmp_path, monkeypatch):
    def without_network(name, local_files_only=False, **options):
        raise OSError("not in the cache" if local_files_only else "no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", without_network)
    assert "encoder.weights: set a text model on the Hub" in refused("huggingface_text")
    line = refused("huggingface_text", weights="someone/model")
    assert "'someone/model' is not on this machine and cannot be downloaded: no network" in line
    assert "or use encoder.name=hashed_ngrams, which works offline" in line
    save_bert(tmp_path)
    folder = {"weights": str(tmp_path)}
    assert "encoder.max_length: 21 is too large: the model reads 20 tokens" in refused(
        "huggingface_text", **folder, max_length=21
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks 'encoder.layer.2" in refused("huggingface_text", **folder)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "nobody"}))
    assert "transformers has no model type 'nobody'" in refused("huggingface_text", **folder)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "encoder.weights: the tokenizer cannot be read" in refused("huggingface_text", **folder)
    (tmp_path / "tokenizer.json").unlink()
    assert "has no tokenizer (tokenizer.json, vocab.txt, vocab.json): it is not a text model" in refused(
        "huggingface_text", **folder
    )
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    assert "has no .safetensors weights" in refused("huggingface_text", **folder)


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@torch.no_grad()
def test_clip_is_asked_for_texts_alone(transformers, bert, tmp_path):
    bert[2].save_pretrained(tmp_path)
    torch.manual_seed(1)
    text = {**SIZES, "max_position_embeddings": 12, "vocab_size": 40}
    config = transformers.CLIPConfig(text_config=text, vision_config={**SIZES, "patch_size": 8, "image_size": 32})
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    network = encoder("huggingface_text", weights=str(tmp_path)).network()
    tokens = [bert[2](text, truncation=True, max_length=12, return_tensors="pt")["input_ids"] for text in TEXTS]
    expected = torch.stack([model.text_model(input_ids=ids).last_hidden_state[0].mean(0) for ids in tokens])
    assert torch.allclose(network(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert network.truncation(TEXTS)["max_tokens"] == 12


def test_a_model_of_images_is_told_to_be_one(transformers, bert, tmp_path):
    bert[2].save_pretrained(tmp_path)
    config = transformers.ViTConfig(**SIZES, patch_size=8, image_size=32)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert "a model of type 'vit' does not read text" in refused("huggingface_text", weights=str(tmp_path))
