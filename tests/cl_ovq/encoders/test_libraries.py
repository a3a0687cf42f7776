"""Encoders of timm and transformers: what these libraries compute themselves, with what lies beside their weights."""

import json

import pytest
import torch
from torch import nn

from cl_ovq.encoders.base import ENCODERS
from cl_ovq.encoders.frozen import named_encoder, state_of
from cl_ovq.errors import UserError


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def encoder(name, **options):
    return named_encoder(name, ENCODERS[name].Options(**options), None)


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def without_network(monkeypatch):
    def refuse(name, local_files_only=False, **options):
        raise OSError("not in the cache" if local_files_only else "no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@torch.no_grad()
def test_a_file_of_weights_for_timm(timm, images, tmp_path):
    torch.manual_seed(5)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=224).eval()
    nn.init.normal_(model.head.weight)
    torch.save(model.state_dict(), tmp_path / "my.pth")
    found = encoder("timm", model="vit_tiny_patch16_224", weights=str(tmp_path / "my.pth"))
    config = timm.data.resolve_model_data_config(model)
    assert found.preprocessing.size == 224
    resized = nn.functional.interpolate(images, 224, mode=config["interpolation"], antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    expected = model.forward_head(model.forward_features((resized - mean) / std), pre_logits=True)
    features = found.network()(images)
    assert close(features, expected)
    assert close(features @ model.head.weight.T + model.head.bias, model((resized - mean) / std))
    assert torch.equal(found.restored(state_of(found.network()))(images), features)


def test_mistakes_with_timm_are_one_line(timm, monkeypatch):
    with pytest.raises(UserError, match=r"timm has no 'resnet19': did you mean 'resnet1\w+'\?"):
        encoder("timm", model="resnet19")
    with pytest.raises(UserError, match=r"resnet18 has no weights 'a1_in2k': did you mean 'a1_in1k'\?"):
        encoder("timm", model="resnet18.a1_in2k")
    without_network(monkeypatch)
    with pytest.raises(
        UserError, match=r"'timm/resnet18\.a1_in1k' is not on this machine and cannot be downloaded: no net"
    ):
        encoder("timm", model="resnet18.a1_in1k")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def save(transformers, tmp_path):
    """`save(model, **processing)`: a folder as the hub has them."""

    def save(model, **processing):
        model.eval().save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processing))
        return str(tmp_path)

    return save


HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}


@torch.no_grad()
def test_a_vit_as_the_library_calls_it(transformers, save, images):
    config = transformers.ViTConfig(**TINY, image_size=32)
    torch.manual_seed(2)
    model = transformers.ViTForImageClassification(config)  # saved with its classifier: `vit.` before all names
    folder = save(model, size={"height": 32, "width": 32}, **HALVES)
    found = encoder("huggingface", weights=folder)
    hidden = model.vit(pixel_values=(images - 0.5) / 0.5).last_hidden_state
    assert close(found.network()(images), hidden[:, 0])
    assert close(encoder("huggingface", weights=folder, pool="mean").network()(images), hidden.mean(1))
    layer = encoder("huggingface", weights=folder, layer="model.embeddings").network()(images)
    assert close(layer, model.vit.embeddings((images - 0.5) / 0.5)[:, 0])
    assert torch.equal(found.restored(state_of(found.network()))(images), found.network()(images))


@torch.no_grad()
def test_clip_is_asked_for_images_alone(transformers, save, images):
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config={**TINY, "image_size": 32})
    torch.manual_seed(2)
    model = transformers.CLIPModel(config)
    folder = save(model, size={"shortest_edge": 32}, crop_size=32, do_center_crop=True, **HALVES)
    expected = model.vision_model(pixel_values=(images - 0.5) / 0.5).pooler_output
    assert close(encoder("huggingface", weights=folder).network()(images), expected)


@torch.no_grad()
def test_maps_are_averaged(transformers, save, images):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    torch.manual_seed(2)
    model = transformers.ResNetModel(config)
    folder = save(model, size={"shortest_edge": 32}, **HALVES)
    expected = model(pixel_values=(images - 0.5) / 0.5).pooler_output.flatten(1)
    assert close(encoder("huggingface", weights=folder).network()(images), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "how", [{"size": {"height": 40, "width": 40}}, {"size": {"shortest_edge": 48}, "crop_size": 40}]
)
def test_preprocessing_is_the_librarys(transformers, save, how):
    config = transformers.ViTConfig(**TINY, image_size=40)
    cut = "crop_size" in how
    facts = {
        **how,
        "do_center_crop": cut,
        "resample": 2,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    folder = save(
        transformers.ViTModel(config), image_processor_type="CLIPImageProcessor", do_convert_rgb=True, **facts
    )
    found = encoder("huggingface", weights=folder, crop=None)
    pictures = torch.randint(0, 256, (2, 3, 60, 60), dtype=torch.uint8)
    processor = transformers.CLIPImageProcessor(**facts)
    expected = processor(list(pictures), return_tensors="pt")["pixel_values"]
    ours = found.network().preprocess(pictures / 255)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 2 / 255 / 0.5  # the library rounds what it resizes


def test_mistakes_with_transformers_are_one_line(transformers, save, tmp_path, monkeypatch):
    def refused(**options):
        with pytest.raises(UserError) as error:
            encoder("huggingface", **options).network()
        return str(error.value)

    assert "set a model on the Hub" in refused()
    without_network(monkeypatch)
    line = refused(weights="facebook/dinov2-small")
    assert "'facebook/dinov2-small' is not on this machine and cannot be downloaded: no network" in line
    assert "hf download facebook/dinov2-small" in line
    (tmp_path / "empty").mkdir()
    assert "has no .safetensors weights" in refused(weights=str(tmp_path / "empty"))
    folder = save(transformers.ViTModel(transformers.ViTConfig(**TINY, image_size=32)))
    (tmp_path / "preprocessor_config.json").unlink()
    assert "defines the preprocessing: the model's image processor also writes it" in refused(weights=folder)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALVES))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks 'layers.2." in refused(weights=folder) or "lacks 'encoder.layer" in refused(weights=folder)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "nobody"}))
    assert "transformers has no model type 'nobody'" in refused(weights=folder)
