"""The chunked implementation and `update` against the reference, over every option."""

import itertools

import pytest
import torch

from kernels import ASSIGNMENT, GROWTH, LEARNING_RATES, READ_OUTS, SEEDS, DictionaryOptions, DictionaryState
from kernels import ovq_attention, reference, update

COMBINATIONS = list(itertools.product(GROWTH, SEEDS, ASSIGNMENT, LEARNING_RATES))


@pytest.mark.parametrize(("growth", "seeds", "assignment", "learning_rate"), COMBINATIONS)
def test_implementations_agree(growth, seeds, assignment, learning_rate):
    read_out = READ_OUTS[COMBINATIONS.index((growth, seeds, assignment, learning_rate)) % 3]
    options = DictionaryOptions(
        capacity=6,
        chunk_size=5,
        growth=growth,
        growth_rate=0.3,
        concentration=4.0,
        novelty_threshold=0.5,
        seeds=seeds,
        assignment=assignment,
        learning_rate=learning_rate,
        rate=0.1,
        read_out=read_out,
    )
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 18, 2, 4, dtype=torch.float64, generator=g)
    v = torch.randn(2, 18, 2, 3, dtype=torch.float64, generator=g)
    mask = torch.rand(2, 18, generator=g) > 0.3
    mask[0, 5:10] = False  # a whole chunk
    beta = torch.tensor([1.0, 3.0], dtype=torch.float64)
    expected, actual = (
        ovq_attention(q, k, v, beta, options, mask=mask, output_final_state=True, implementation=name)
        for name in ("reference", "chunked")
    )
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1].state_dict(), expected[1].state_dict())

    empty = DictionaryState.empty(1, 2, 6, 4, 3, torch.float64)
    written, slots = update(empty, k, v, options, mask)
    expected_state, expected_slots = reference.update(empty, k, v, options, mask)
    assert torch.equal(slots, expected_slots)
    torch.testing.assert_close(written.state_dict(), expected_state.state_dict())
