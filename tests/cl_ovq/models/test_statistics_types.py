"""Heads that learn by counting keep the type of what they count, whatever the model around them becomes."""

import pytest
import torch

from cl_ovq.models.discriminant import NearestMean, StreamingDiscriminant
from cl_ovq.models.fecam import MahalanobisHead
from cl_ovq.models.memory import MemoryHead
from cl_ovq.models.neighbours import NearestNeighbours
from cl_ovq.models.ridge import RidgeHead


def seeded(head, **options):
    """Return a head whose random numbers are the same every time."""
    torch.manual_seed(0)
    return head(features=4, classes=3, **options)


HEADS = {
    "memory": lambda: MemoryHead(features=4, classes=3, capacity=12, chunk_size=8),
    "memory int8": lambda: MemoryHead(features=4, classes=3, capacity=12, chunk_size=8, storage="int8"),
    "ncm": lambda: NearestMean(features=4, classes=3),
    "slda": lambda: StreamingDiscriminant(features=4, classes=3, shrinkage=0.1),
    "ridge": lambda: seeded(RidgeHead, strength=1.0),
    "ranpac": lambda: seeded(RidgeHead, width=8),
    "fecam": lambda: seeded(MahalanobisHead),
    "knn": lambda: seeded(NearestNeighbours, capacity=20),
}


@pytest.fixture(params=HEADS.values(), ids=HEADS)
def make(request):
    return request.param


def samples(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 4, generator=generator, dtype=torch.float32).bfloat16(), torch.arange(30) % 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_casting_the_model_changes_no_statistic(make, dtype):
    cast, plain = make(), make()
    for head in (cast, plain):
        head.observe(samples(0)[0].float(), samples(0)[1])
    cast = torch.nn.Sequential(cast).to(dtype)[0]
    x, y = samples(1)
    cast.observe(x.to(dtype), y)
    plain.observe(x.float(), y)
    for (name, buffer), expected in zip(cast.named_buffers(), plain.buffers(), strict=True):
        assert buffer.dtype == expected.dtype, name
        assert torch.equal(buffer, expected), name
    torch.testing.assert_close(cast(x.to(dtype)).float(), plain(x.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_heads_made_under_another_default_type_are_the_same(make, dtype):
    plain, (x, y) = make(), samples(0)
    plain.observe(x.float(), y)
    torch.set_default_dtype(dtype)
    try:
        other = make()
        other.observe(x.float(), y)
        answers = other(x.float())
    finally:
        torch.set_default_dtype(torch.float32)
    for (name, buffer), expected in zip(other.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
        assert buffer.dtype == expected.dtype, name
    torch.testing.assert_close(answers, plain(x.float()))
