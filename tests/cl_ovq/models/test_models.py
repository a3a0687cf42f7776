"""The classifier and its task-masked head."""

import pytest
import torch
from quick_settings import built
from torch import nn

from cl_ovq.errors import UserError
from cl_ovq.mixers import SoftmaxAttention, dictionaries
from cl_ovq.models import MODELS, PatchTransformer, build_model
from streams import SplitOptions, build_stream

CLASSES = ((3, 0), (1,), (4, 2))


@pytest.fixture
def masked():
    from cl_ovq.models.heads import TaskMaskedModel

    torch.manual_seed(0)
    return TaskMaskedModel(nn.Linear(6, 5), CLASSES, 5)


def test_only_classes_of_the_samples_task_have_a_logit(masked):
    x = torch.randn(7, 6)
    tasks = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    logits, plain = masked(x, tasks), masked.model(x)
    for row, task in enumerate(tasks.tolist()):
        for label in range(5):
            expected = plain[row, label] if label in CLASSES[task] else torch.tensor(-torch.inf)
            assert torch.equal(logits[row, label], expected)


def test_one_label_stands_for_the_whole_batch(masked):
    x = torch.randn(3, 6)
    assert torch.equal(masked(x, 2), masked(x, torch.full((3,), 2)))
    assert torch.equal(masked.forward_single_task(x, 2), masked(x, 2))


def test_hidden_classes_get_no_gradient_and_the_loss_is_finite(masked):
    x, y = torch.randn(4, 6), torch.tensor([4, 2, 2, 4])
    loss = nn.functional.cross_entropy(masked(x, 2), y)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = masked.model.weight.grad.abs().sum(1)
    assert (gradients[[0, 1, 3]] == 0).all()
    assert (gradients[[2, 4]] > 0).all()


def test_the_mask_follows_the_model_but_is_no_part_of_its_state(masked):
    assert "hidden" not in masked.state_dict()
    assert "hidden" in dict(masked.named_buffers())


def test_patches_are_read_in_raster_order():
    torch.manual_seed(0)
    model = PatchTransformer(
        image_shape=(1, 4, 6), n_classes=3, patch_size=2, width=8, mixers=[SoftmaxAttention(width=8, heads=2)]
    )
    image = torch.arange(24.0).view(1, 1, 4, 6)
    patches = model.patches(image).transpose(1, 2)
    assert model.tokens == 6
    assert patches[0, 0].tolist() == [0, 1, 6, 7]
    assert patches[0, 1].tolist() == [2, 3, 8, 9]
    assert patches[0, 3].tolist() == [12, 13, 18, 19]
    assert model(image).shape == (1, 3)
    assert model.features(image).shape == (1, 8)


def test_patch_size_that_does_not_divide_the_image():
    with pytest.raises(UserError, match=r"model\.patch_size: 3 does not divide an image of 8 x 8 .* known: 1, 2, 4, 8"):
        PatchTransformer(image_shape=(1, 8, 8), n_classes=3, patch_size=3, width=8, mixers=[])


@pytest.mark.parametrize("head", ["linear", "memory"])
@pytest.mark.parametrize("scope", ["sequence", "task", "stream"])
@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental", "domain_incremental"])
def test_every_model_of_the_registry_is_built_for_every_scenario(head, scope, scenario):
    stream = build_stream("split_digits", SplitOptions(scenario=scenario, experiences=2), seed=0)
    x = stream.samples.gather(torch.arange(4))
    for name in MODELS.keys() - {"sequence_model"}:  # which reads no images
        sizes = {"name": name, "width": 8, "heads": 2, "depth": 3, "head": head}
        config = built(model=sizes, dictionary={"scope": scope})
        model = build_model(config, stream).eval()
        logits = model(x, 1) if scenario == "task_incremental" else model(x)
        assert logits.shape == (4, 5 if scenario == "domain_incremental" else 10)
        shared = name == "patch_transformer" and scope != "sequence"
        assert len(dictionaries(model)) == (3 if shared else 0)
