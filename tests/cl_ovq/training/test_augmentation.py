"""Augmentation: what it does to images, which passes see it, and that nothing else changes with it."""

import copy

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from PIL import Image
from quick_settings import ANYWHERE, quick
from torchvision.transforms import v2

from cl_ovq.errors import UserError
from cl_ovq.models.heads import RememberingHead
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.setup import load_stream
from cl_ovq.runs.training_checks import build_transforms
from cl_ovq.strategies import AUGMENTATIONS, STRATEGIES
from cl_ovq.strategies.augmentation import ColorOptions, CropOptions, FlipOptions, RandAugmentOptions
from cl_ovq.training.augmentation import Augmentation

SHAPE = (3, 6, 5)
MLP = ("model.name=mlp", "model.width=8")
CROP = ("training.augmentation=[crop]", "training.padding=1")
FLIP = ("training.augmentation=[flip]", "training.flip_probability=1")
TRAINED = [name for name in ANYWHERE if not STRATEGIES[name].is_head]


def images(count=200, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def test_a_crop_is_one_of_numpys_windows_and_every_one_comes():
    x = images()
    found = Augmentation([AUGMENTATIONS["crop"].build(CropOptions(padding=2), SHAPE)], seed=0).augment(x)
    assert found.shape == x.shape
    seen = set()
    for before, after in zip(x.numpy(), found.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)))
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(padded[:, top : top + 6, left : left + 5], after)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 25


def test_about_half_of_the_images_are_flipped_as_pillow_does():
    x = images()
    found = Augmentation([AUGMENTATIONS["flip"].build(FlipOptions(), SHAPE)], seed=0).augment(x)
    flipped = 0
    for before, after in zip(x, found, strict=True):
        mirror = np.stack(
            [np.asarray(Image.fromarray(part.numpy()).transpose(Image.Transpose.FLIP_LEFT_RIGHT)) for part in before]
        )
        flipped += np.array_equal(after, mirror)
        assert np.array_equal(after, mirror) or torch.equal(after, before)
    assert 70 < flipped < 130


@pytest.mark.parametrize(
    ("name", "options", "other"),
    [
        ("color", ColorOptions(0.3, 0.2, 0.1, 0.05), v2.ColorJitter(0.3, 0.2, 0.1, 0.05)),
        ("randaugment", RandAugmentOptions(3, 12), v2.RandAugment(3, 12)),
    ],
)
def test_others_are_torchvisions_drawn_anew_for_each_sample(name, options, other):
    x = images(6)
    found = Augmentation([AUGMENTATIONS[name].build(options, SHAPE)], seed=7).augment(x)
    torch.manual_seed(7)
    assert torch.equal(found, torch.stack([other(image) for image in x]))
    same = Augmentation([AUGMENTATIONS[name].build(options, SHAPE)], seed=7).augment(x[:1].expand(6, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in same}) > 3


def test_every_augmentation_leaves_images_of_one_channel_in_their_range(tiny):
    stream = load_stream(tiny())
    x = stream.samples.gather(torch.arange(300))
    for name in AUGMENTATIONS:
        config = tiny(f"training.augmentation=[{name}]")
        found = Augmentation(build_transforms(config, stream), seed=0).augment(x)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        assert not torch.equal(found, x)
        assert 0 <= found.min() <= found.max() <= 1


def test_its_random_numbers_are_its_own_and_go_on_from_its_state():
    one, other = (Augmentation([AUGMENTATIONS["crop"].build(CropOptions(), SHAPE)], seed=1) for _ in range(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one.augment(images())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one.generator, other.generator)
    other.generator = one.generator
    torch.manual_seed(1)
    assert torch.equal(one.augment(images()), other.augment(images()))


class Seen(SupervisedPlugin):
    """Keeps what a step's pass is given, with the plain images of the same rows."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples
        self.batches, self.training = [], 0

    def before_forward(self, strategy, **kwargs):
        self.batches.append((strategy.mb_x.clone(), self.samples.gather(strategy.dataloader.rows)))

    def before_eval_forward(self, strategy, **kwargs):
        assert torch.equal(strategy.mb_x, self.samples.gather(strategy.dataloader.rows))


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_sees_new_and_past_samples_changed_and_evaluation_none(session, name):
    trained = session(*quick(name, *MLP, *FLIP))
    seen = Seen(trained.stream.samples)
    trained.learn(last=[seen])
    assert seen.batches
    assert all(torch.equal(found, plain.flip(-1)) for found, plain in seen.batches)
    trained.strategy.plugins.append(seen)
    trained.strategy.eval(trained.test)


def test_the_order_of_batches_is_that_of_a_run_without(session):
    found = []
    for overrides in ((), CROP):
        trained = session("strategy.name=replay", *MLP, *overrides)
        seen = Seen(trained.stream.samples)
        trained.learn(last=[seen])
        found.append([plain for _, plain in seen.batches])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_reference_gradients_are_of_changed_samples(session, name):
    trained = session(f"strategy.name={name}", *MLP, *FLIP)
    (method,) = (plugin for plugin in trained.strategy.plugins if hasattr(plugin, "references"))
    asked, at = [], method.memory.at
    method.memory.at = lambda *arguments: asked.append(at(*arguments)) or asked[-1]
    given = []
    trained.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()))
    trained.learn()
    assert asked
    assert all(any(torch.equal(x, batch.x.flip(-1)) for x in given) for batch in asked)


def test_a_teacher_sees_what_its_pupil_sees(session):
    trained = session("strategy.name=lwf", *MLP, *FLIP)
    (method,) = (plugin for plugin in trained.strategy.plugins if hasattr(plugin, "teacher"))
    given, copied = [], copy.deepcopy

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if method.teacher is not None:
                method.teacher.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()))

    seen = Seen(trained.stream.samples)
    trained.learn(Watch(), last=[seen])
    assert copied is copy.deepcopy
    assert len(given) > 2
    assert all(map(torch.equal, given, [found for found, _ in seen.batches[-len(given) :]]))


@pytest.mark.parametrize("when", ["always", "first_experience"])
def test_a_memory_is_written_with_plain_samples(session, when):
    """In evaluation mode, by the encoder of each step."""
    trained = session("strategy.name=naive", "model.head=memory", f"model.train_encoder={when}", *MLP, *CROP)
    samples, written, expected = trained.stream.samples, [], []
    (head,) = (module for module in trained.model.modules() if isinstance(module, RememberingHead))
    observe = head.memory.observe
    head.memory.observe = lambda features, targets: written.append(features) or observe(features, targets)

    class Watch(SupervisedPlugin):
        @torch.no_grad()
        def before_forward(self, strategy, **kwargs):
            expected.append(trained.model.features(samples.gather(strategy.dataloader.rows)))

    trained.learn(last=[Watch()])
    assert len(written) > 10
    for found, wanted in zip(written, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["stream.name=recall", "model.name=sequence_model"],
            "training.augmentation: requires images, but 'recall' has sequences: remove it",
        ),
        (["strategy.name=ncm"], "training.augmentation: has no effect: strategy.name=ncm learns without gradients"),
        (
            ["encoder.name=torchvision", "model.name=pixels", "encoder.model=resnet18"],
            "training.augmentation: cannot be combined with a frozen encoder, whose features are computed once",
        ),
        (["training.augmentation=[flip, flip]"], "training.augmentation: flip is listed twice"),
        (["training.augmentation=[]", "training.padding=2"], "training.padding: training.augmentation names none that"),
        (["training.padding=2"], "training.padding: 'flip' does not use it: augmentations that do: crop"),
        (["training.augmentation=[corp]"], "training.augmentation: unknown augmentation 'corp': did you mean 'crop'?"),
        (["training.flip_probability=0"], "training.flip_probability: 0 is too small: it must be greater than 0"),
    ],
)
def test_what_would_do_nothing_is_refused(tiny, overrides, line):
    with pytest.raises(UserError) as caught:
        check_config(tiny("training.augmentation=[flip]", *overrides))
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["training.augmentation=[color]", "training.hue=0.1"], "training.hue: has no effect: the stream's images"),
        (["training.augmentation=[color]", "training.brightness=0"], "training.augmentation: color has no effect"),
    ],
)
def test_colour_that_would_not_change_is_refused(tiny, overrides, line):
    with pytest.raises(UserError) as caught:
        load_stream(tiny(*overrides))
    assert str(caught.value).startswith(line)


def test_vectors_and_other_channels_are_refused(tiny, tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "vectors.npz"
    np.savez(path, features=random.normal(size=(60, 4)), labels=np.arange(60) % 6)
    config = tiny("stream.name=features", f"stream.data={path}", "training.augmentation=[flip]")
    with pytest.raises(UserError, match=r"training.augmentation: requires images, but 'features' has vectors"):
        load_stream(config)
    with pytest.raises(UserError, match="requires images with 1 or 3 channels, but the stream's have 2"):
        AUGMENTATIONS["randaugment"].build(RandAugmentOptions(), (2, 8, 8))
